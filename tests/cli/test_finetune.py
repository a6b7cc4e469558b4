"""`zerograd.finetune`: the command as one call, with rows from memory."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import zerograd
from own_run import REVIEWS
from zerograd.cli.again import noted
from zerograd.cli.finetune import Finetuned
from zerograd.cli.main import main
from zerograd.training.models import load_model

ASKED: dict[str, Any] = {
    "prompt": "{review} It was about a", "labels": ["film", "book", "hotel"], "label_column": "kind", "num_train": 24,
    "num_dev": 12, "num_test": 6, "max_steps": 2, "save_steps": 1, "learning_rate": 1e-3, "use_cpu": True,
    "disable_tqdm": True,
}  # fmt: skip


def rows() -> list[dict[str, Any]]:
    with REVIEWS.open(newline="") as file:
        return list(csv.DictReader(file))[:60]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("finetune"))
        made = zerograd.finetune(data=rows(), **ASKED)
        assert str(made.folder) == "runs/data"
        return Finetuned(**{**vars(made), "folder": made.folder.absolute()})


def test_it_returns_what_a_notebook_shows(tuned: Finetuned) -> None:
    assert list(tuned.metrics) == ["accuracy", "loss"] == list(tuned.before)
    assert tuned.picture.read_bytes()[:4] == b"\x89PNG"
    assert "<img" in tuned._repr_html_() and "accuracy" in tuned._repr_html_()
    assert len(tuned.predictions) == 6
    assert list(tuned.predictions[0]) == ["review", "kind", "prediction", "probabilities"]
    right = sum(row["prediction"] == row["kind"] for row in tuned.predictions) / 6
    assert tuned.metrics["accuracy"] == pytest.approx(right)
    saved = load_model(str(tuned.folder), "auto")[0].state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in tuned.model.state_dict().items())


def test_it_predicts_texts_rows_and_tables(tuned: Finetuned) -> None:
    texts = [row["review"] for row in rows()[:3]]
    labels = tuned.predict(texts)
    assert len(labels) == 3 and set(labels) <= {"film", "book", "hotel"}
    assert tuned.predict([{"review": text} for text in texts]) == labels
    assert tuned.predict(Dataset.from_dict({"review": texts})) == labels
    assert tuned.predict(Dataset.from_dict({"review": texts}).to_pandas()) == labels
    (scored,) = tuned.predict(texts[0], scores=True)
    assert scored["prediction"] == labels[0] and sum(scored["probabilities"].values()) == pytest.approx(1)
    assert tuned.predict([]) == []
    with pytest.raises(ValueError, match="row 0 has nothing in column 'review'"):
        tuned.predict([{"text": "a"}])


def test_it_predicts_a_file_and_shows_itself_in_a_line(tuned: Finetuned, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("review\nthe bed is soft .\nthe plot shines .\n")
    assert tuned.predict(str(path)) == tuned.predict(path) == tuned.predict(["the bed is soft .", "the plot shines ."])
    with pytest.raises(ValueError, match="there is no .*none.csv"):
        tuned.predict("none.csv")
    assert tuned.predict(Dataset.from_dict({"review": ["the bed is soft ."]}).to_pandas()["review"]) == tuned.predict(
        "the bed is soft ."
    )
    assert repr(tuned).startswith("Finetuned('") and "on 6 test rows)" in repr(tuned) and "\n" not in repr(tuned)


def test_its_folder_is_a_run_of_the_command(tuned: Finetuned, tmp_path: Path, capsys: Any) -> None:
    """It is finished, and another one from its settings has the same bits."""
    assert main(["train", "--resume", "--output_dir", str(tuned.folder)]) == 0
    assert "is finished" in capsys.readouterr().out
    given = {**noted(tuned.folder), "output_dir": tmp_path / "again"}
    zerograd.finetune(**given)
    assert (tmp_path / "again" / "steps.zlog").read_bytes() == (tuned.folder / "steps.zlog").read_bytes()


def test_it_goes_on(tuned: Finetuned, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned.folder, tmp_path / "run")
    longer = zerograd.finetune(output_dir=folder, resume=True, max_steps=3)
    assert longer.folder == folder and "3; the weights" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="is finished; more max_steps go on"):
        zerograd.finetune(output_dir=folder, resume=True)
    with pytest.raises(ValueError, match="the rows are not those in"):
        zerograd.finetune(data=rows()[:50], output_dir=folder, resume=True, max_steps=4)
    with pytest.raises(ValueError, match="already holds a run"):
        zerograd.finetune(data=rows(), output_dir=folder, **ASKED)


def test_wrong_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"data": 3}, "data is a int that is no table of rows"),
        ({"data": {"tain": rows()}}, "data has the parts tain; name them train, validation and test"),
        ({"data": "none.csv"}, "there is no"),
        ({"data": rows(), "model": "/nowhere"}, "cannot load model '/nowhere'"),
        ({"data": rows(), "max_steps": "ten"}, "max_steps must be at least 1"),
        ({"data": rows(), "labels": ["a,b", "c"]}, "the label 'a,b' has a comma"),
        ({"data": rows(), "prompt": "{text} It was"}, "no column 'text'"),
        ({"data": rows(), "k": 2}, "k 2 and num_train 24 both say how many"),
    ]
    for given, words in wrong:
        with pytest.raises(ValueError, match=words):
            zerograd.finetune(**{**ASKED, **given})
    with pytest.raises(TypeError, match="unknown setting 'learning_rat'; did you mean 'learning_rate'"):
        zerograd.finetune(learning_rat=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": {"terrible", "great"}}, "labels is a set, which has no order"),
        ({"max_steps": 1.5}, "max_steps must be a whole number, got 1.5"),
        ({"objective": len}, "objective is written 'module:function'"),
        ({"resume": True}, "give it as output_dir"),
        ({"output_dir": __file__}, "output_dir is a file, .*test_finetune.py: give a folder"),
    ],
)
def test_what_a_call_is_refused_for(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        zerograd.finetune(**{"data": rows(), "prompt": "{text} It was", "labels": ["terrible", "great"], **settings})
