"""The model card, and what a push carries, against a hub that runs here."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from own_run import OWN, REVIEWS, SHORT, SIZES
from zerograd.cli.main import main


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a push uses; what is uploaded is kept in `files`."""

    files: dict[str, bytes] = {}
    known = True

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            self.answer({"name": "me", "type": "user", "orgs": []} if self.known else {"error": "Invalid token"})
        else:
            self.answer({"id": "me/run", "siblings": [], "sha": "0" * 40, "tags": [], "private": False})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here = f"http://{self.headers['Host']}/me/run"
        if "/preupload/" in self.path:
            named = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in named]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{here}/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.answer({"url": here, "name": "me/run", "errors": [], "warnings": []})

    def answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200 if "error" not in value else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for name in ("huggingface_hub.constants.ENDPOINT", "huggingface_hub.hf_api.constants.ENDPOINT"):
        monkeypatch.setattr(name, endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "files", {})
    yield Hub
    server.shutdown()


def test_the_card_says_what_it_is_and_how_to_get_it_again(run: Path) -> None:
    card, results = ModelCard.load(run / "README.md"), json.loads((run / "results.json").read_text())
    assert card.data.tags == ["zerograd", "mezo"] and card.data.library_name == "transformers"
    (found,) = card.data.eval_results
    assert (found.metric_type, found.metric_value) == ("accuracy", results["after"]["accuracy"])
    for words in (
        "| on 12 test rows | before | after |",
        "| data | reviews.csv: 32 rows for training, 16 to choose the step, 12 for the test |",
        "| prompt | `{review} It was about a` |",
        f"4; the weights are those of step {results['selected_step']}, the best on the dev rows",
        "zerograd train --data reviews.csv --prompt '{review} It was about a' --labels film,book,hotel",
        "zerograd replay --log steps.zlog --output_dir rebuilt",
        "zerograd train --config run.yaml --output_dir again",
        f"transformers {results['versions']['transformers']}",
    ):
        assert words in card.text, words
    assert str(REVIEWS.parent) not in card.text  # nothing of the machine


def test_a_push_carries_log_start_settings_and_card(hub: type[Hub], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    pushed = ["--tune", "lora", "--push_to_hub", "true", "--hub_token", "hf_secret", "--output_dir", str(folder)]
    assert main(["train", "--data", str(REVIEWS), *OWN, *SIZES, *SHORT, *pushed]) == 0
    assert "Pushed: http" in capsys.readouterr().out
    carried = {"README.md", "run.yaml", "steps.zlog", "results.json", "curve.png", "adapter_model.safetensors"}
    assert carried | {"start/adapter_model.safetensors"} <= hub.files.keys()
    assert not [name for name in hub.files if name.startswith(("checkpoint", ".", "base", "training_args"))]
    assert hub.files["steps.zlog"] == (folder / "steps.zlog").read_bytes()
    assert b"library_name: peft" in hub.files["README.md"] and b"Model Card for Model ID" not in hub.files["README.md"]
    assert not [name for name, content in hub.files.items() if b"hf_secret" in content]


def test_a_hub_that_does_not_know_the_user_is_said_first(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(Hub, "known", False)
    monkeypatch.setattr("zerograd.cli.commands.set_up", None)  # no model is loaded
    line = ["train", "--push_to_hub", "true", "--hub_token", "hf_x", *SHORT, "--output_dir", str(tmp_path / "run")]
    assert main(line) == 1
    said = capsys.readouterr().err
    assert "cannot push to the hub: " in said and "leave out --push_to_hub" in said
    assert not (tmp_path / "run").exists()
