"""`zerograd compare` and `report`: methods over seeds, resumed, tabulated, and refused where settings differ."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from zerograd.cli.compare import runner
from zerograd.cli.compare.estimate import NAMES, Clock, seconds_of, shown_time, table_of
from zerograd.cli.compare.grid import points_of, read_seeds
from zerograd.cli.compare.methods import METHODS
from zerograd.cli.compare.runner import CompareArguments, run_planned
from zerograd.cli.compare.table import read_lines
from zerograd.cli.main import main

SIZES = "--num_train 48 --num_dev 20 --num_test 30"
SHORT = ["*.max_steps=4", "*.eval_steps=0.5", "*.per_device_train_batch_size=8"]


def zerograd(line: str, *more: object) -> int:
    return main([*line.split(), *(str(m) for m in more)])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "out"
    methods = "zero-shot icl lp head mezo mezo-lora mezo-prefix mezo-head lp-mezo ft ft-sgd ft-lora ft-prefix"
    flags = ["--set", *SHORT, "--output_dir", folder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_run_process", run_planned)  # that it is a process is tested where a run fails
        assert zerograd(f"compare {SIZES} --task sst2 --seeds 1 --methods {methods}", *flags) == 0
    return folder


def test_every_method_runs_and_has_a_line(compared: Path) -> None:
    lines = {line.method: line for line in read_lines(compared)}
    assert set(lines) == set(METHODS)
    for line in lines.values():
        assert (line.seeds, line.planned, line.std) == (1, 1, None)
        assert line.mean is not None and 0 <= line.mean <= 1
        assert (line.peak_memory_bytes or 0) > 1e8
    assert {n: x.forward_passes for n, x in lines.items() if "mezo" in n} == {
        "mezo": 8, "mezo-lora": 8, "mezo-prefix": 8, "mezo-head": 8, "lp-mezo": 8 + (lines["lp"].forward_passes or 0),
    }  # fmt: skip
    assert {lines[n].backward_passes for n in ("ft", "ft-sgd", "ft-lora", "ft-prefix", "head")} == {4}
    assert all(lines[n].backward_passes == 0 for n in ("zero-shot", "icl", "lp", "mezo", "lp-mezo"))
    assert lines["zero-shot"].trainable_parameters == 0
    assert lines["mezo-lora"].trainable_parameters == lines["ft-lora"].trainable_parameters
    assert (lines["ft"].trainable_parameters or 0) > (lines["lp"].trainable_parameters or 0) > 0
    assert not list(compared.rglob("checkpoint*"))  # only logs, notes and results stay
    assert not list(compared.rglob("base.weights"))


def test_the_table_is_written_three_ways(compared: Path) -> None:
    text = (compared / "table.md").read_text()
    assert "Not finished" not in text
    with (compared / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == list(METHODS)
    for row in rows:
        assert f"| {row['method']}: " in text
        assert f"{float(row['mean']) * 100:.1f}" in text
    assert (compared / "table.png").read_bytes()[:4] == b"\x89PNG"


def test_a_finished_run_is_not_run_again_and_others_are(
    compared: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_run_process", run_planned)
    results = sorted(compared.rglob("results.json"))
    times = [path.stat().st_mtime_ns for path in results]
    flags = ["--set", *SHORT, "--output_dir", compared]
    assert zerograd(f"compare {SIZES} --task sst2 --seeds 1 --methods zero-shot mezo", *flags) == 0
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in results] == times
    gone = compared / "lp" / "seed-13" / "run" / "results.json"
    kept = gone.read_text()
    gone.unlink()
    assert zerograd("report", compared) == 0
    said = capsys.readouterr().out
    assert "**Not finished**: lp has 0 of 1 seeds" in said
    assert "| lp: linear probing | not run | 0 of 1 |" in said
    assert zerograd(f"compare {SIZES} --task sst2 --seeds 1 --methods lp,lp", *flags) == 0
    again, before = json.loads(gone.read_text()), json.loads(kept)
    assert {k: again[k] for k in ("test", "dev", "forward_passes")} == {
        k: before[k] for k in ("test", "dev", "forward_passes")
    }


MISTAKES = [
    (f"{SIZES} --task sst2 --objective accuracy", "objective None .here .accuracy"),
    (f"{SIZES} --task sst2 --set mezo.learning_rate=1e-3", "holds runs of mezo with learning_rate 1e-06"),
    (f"{SIZES} --task sst2 --methods mezzo", "did you mean 'mezo'"),
    (f"{SIZES} --task sst2 --seeds many", "neither a number of seeds"),
    (f"{SIZES} --task sst2 --seeds 0", "at least one seed"),
    (f"{SIZES} --task sst2 --seeds 1,1", "different seeds"),
    (f"{SIZES} --task sst2 --set mezo.lr=1", "SETTING one of learning_rate"),
    (f"{SIZES} --task sst2 --set mezo.eps=small", "no number"),
    (f"{SIZES} --task sst2 --methods lp --set ft.max_steps=1", "no method here takes max_steps and is named 'ft'"),
    (f"{SIZES} --task sst2 --methods ft mezo --set ft.eps=1", "these do: .'mezo'"),
    (f"{SIZES} --task sst2 --methods ft --methods mezo", "give --methods once"),
    (
        f"{SIZES} --task sst2 --methods ft mezo --objective accuracy",
        "ft cannot be compared .* --methods mezo\n  ft: objective 'accuracy' has no gradient for backpropagation",
    ),
    (f"{SIZES} --task sst2 --methods ft-lora mezo --quantize 8bit", "mezo: quantised weights cannot be tuned"),
    (f"{SIZES} --task sst2 --tune lora", "leave out --tune"),
    ("--task sst2 --k 100000", "100000"),
    ("--task sst2 --data /nowhere/{seed}", "/nowhere/13"),
]


@pytest.mark.slow
def test_what_does_not_fit_is_said_before_anything_runs(compared: Path, capsys: Any) -> None:
    before = (compared / "compare.json").read_text()
    for line, message in MISTAKES:
        methods = [] if "--methods" in line else ["--methods", "mezo"]
        assert zerograd(f"compare {line}", *methods, "--output_dir", compared) in (1, 2), line
        assert re.search(message, capsys.readouterr().err), line
        assert (compared / "compare.json").read_text() == before, line


OWN = ["--prompt", "{text} It was", "--labels", "very terrible,rather great"]  # two tokens each


def own_rows(folder: Path) -> list[Any]:
    data = folder / "reviews.jsonl"
    data.write_text("\n".join(json.dumps({"text": f"text {i}", "label": i % 2}) for i in range(40)))
    return ["--data", data, *OWN]


def test_methods_that_cannot_be_are_named_before_the_first_run(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them at once, each with its reason, and nothing was run or written."""
    monkeypatch.setattr(runner, "_run_process", lambda folder: pytest.fail("something was run"))
    own, folder = own_rows(tmp_path), tmp_path / "out"
    line = "compare --seeds 1 --methods zero-shot lp lp-mezo ft-lora --lora_targets nowhere"
    assert zerograd(line, *own, "--output_dir", folder) == 1
    said = capsys.readouterr().err
    assert "lp, lp-mezo, ft-lora cannot be compared on this model, tokenizer and task; give --methods zero-shot" in said
    assert "  lp: linear probing needs label words of one token each" in said
    assert "  ft-lora: lora_targets: no module of the model is named 'nowhere'" in said
    assert not folder.exists()


def test_how_long_it_will_take_is_said_before_the_first_run(compared: Path, capsys: Any) -> None:
    unit = json.loads((compared / "timing" / "results.json").read_text())
    assert set(unit) == set(NAMES) and all(value > 0 for value in unit.values())
    short, long = ({"per_device_train_batch_size": 8, "max_steps": n, "eval_steps": 0.5} for n in (4, 400))
    mezo, zero = METHODS["mezo"], METHODS["zero-shot"]
    assert seconds_of(zero, {}, unit) < seconds_of(mezo, short, unit) < seconds_of(mezo, long, unit)
    assert seconds_of(mezo, long | {"num_probes": 4}, unit) > 2 * seconds_of(mezo, long, unit)
    epochs = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "eval_steps": 0.5}  # 6 batches an epoch
    same = {"per_device_train_batch_size": 8, "max_steps": 12, "eval_steps": 0.5}
    assert seconds_of(METHODS["ft"], epochs, unit) == pytest.approx(seconds_of(METHODS["ft"], same, unit))


def test_time_left_follows_what_was_seen() -> None:
    clock = Clock({"a": 10.0, "b": 10.0, "c": 20.0})
    assert clock.left == 40
    clock.finished("a", 30.0)
    assert clock.left == 90
    assert [shown_time(s) for s in (40, 300, 7200)] == ["40 s", "5 min", "2.0 h"]
    table = table_of({("mezo", 13): 60.0, ("mezo", 21): 120.0, ("ft", 21): 30.0}).splitlines()
    assert table[0].split() == ["minutes", "seed", "13", "seed", "21", "together"]
    assert [line.split() for line in table[1:]] == [
        ["mezo", "1.0", "2.0", "3.0"], ["ft", "done", "0.5", "0.5"], ["all", "3.5"],
    ]  # fmt: skip


@pytest.mark.slow
def test_a_failing_run_is_named_and_leaves_the_others(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> int:
        if folder.parent.parent.name == "mezo":
            (folder / "error.txt").write_text("no memory")
            return 1
        return run_planned(folder)

    monkeypatch.setattr(runner, "_run_process", fails)
    folder = tmp_path / "out"
    assert zerograd("compare --seeds 1 --methods zero-shot mezo", *own_rows(tmp_path), "--output_dir", folder) == 1
    said = capsys.readouterr()
    assert "1 of 2 runs failed" in said.err and "no memory" in said.err
    assert "**Not finished**: mezo has 0 of 1 seeds" in said.out
    assert "minutes" in said.out and "left" in said.out


@pytest.mark.slow
def test_a_run_is_a_process(tmp_path: Path, capsys: Any) -> None:
    assert zerograd(f"compare {SIZES} --task sst2 --seeds 1 --methods zero-shot", "--output_dir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "zero-shot" / "seed-13" / "run" / "output.txt").is_file()


def test_report_of_a_folder_without_a_comparison(tmp_path: Path, capsys: Any) -> None:
    assert zerograd("report", tmp_path) == 1
    assert "no compare.json" in capsys.readouterr().err
    (tmp_path / "something").touch()
    assert zerograd(f"compare {SIZES}", "--output_dir", tmp_path) == 1
    assert "is not empty and holds no comparison" in capsys.readouterr().err


def test_seeds() -> None:
    assert read_seeds("3") == [13, 21, 42]
    assert read_seeds("7") == [13, 21, 42, 87, 100, 101, 102]
    assert read_seeds("5,7") == [5, 7]
    assert read_seeds("13,") == [13]


def test_grids_are_the_papers_unless_given() -> None:
    ft, masked = METHODS["ft"], METHODS["ft"].preset(True)
    few = points_of(ft, masked, True, True, [])
    assert len(few) == 9
    assert {p["per_device_train_batch_size"] for p in few.values()} == {2, 4, 8}
    many = points_of(ft, masked, True, False, ["ft*.learning_rate=1e-3", "*.eps=1", "*.eval_steps=0.2,0.5"])
    halves = [p for p in many.values() if p["eval_steps"] == 0.5]
    assert len(many) == 2 * len(halves) and all(p["save_steps"] == p["eval_steps"] for p in many.values())
    assert "eps" not in halves[0]
    assert [(p["learning_rate"], p["per_device_train_batch_size"]) for p in halves] == [
        (1e-3, 8), (1e-3, 16), (1e-3, 32),
    ]  # fmt: skip
    assert list(points_of(METHODS["zero-shot"], None, True, True, [])) == ["run"]
    epochs = points_of(ft, masked, False, False, ["ft.num_train_epochs=2"])["run"]
    assert "max_steps" not in epochs and epochs["num_train_epochs"] == 2


def test_a_grid_is_chosen_from_by_the_dev_metric(tmp_path: Path) -> None:
    plan = {"seeds": [1, 2], "points": {"lr-1": {"learning_rate": 1}, "lr-2": {"learning_rate": 2}}}
    (tmp_path / "compare.json").write_text(json.dumps({"methods": {"mezo": plan}}))
    dev = {(1, "lr-1"): (0.7, 0.1), (1, "lr-2"): (0.6, 0.9), (2, "lr-1"): (0.5, 0.9), (2, "lr-2"): (0.8, 0.3)}
    for (seed, point), (on_dev, on_test) in dev.items():
        folder = tmp_path / "mezo" / f"seed-{seed}" / point
        folder.mkdir(parents=True)
        more = {"seconds": 1, "forward_passes": 2, "backward_passes": 0, "peak_memory_bytes": 1}
        result = {
            "metric": "accuracy", "dev": {"accuracy": on_dev}, "test": {"accuracy": on_test},
            "trainable_parameters": 1, "settings": plan["points"][point], **more,
        }  # fmt: skip
        (folder / "results.json").write_text(json.dumps(result))
    (line,) = read_lines(tmp_path)
    assert (line.seeds, line.mean) == (2, pytest.approx(0.2))  # 0.1 and 0.3, which the dev rows chose
    assert line.settings == "lr 1 (1x) 2 (1x)"
    (tmp_path / "mezo" / "seed-2" / "lr-1" / "results.json").unlink()
    (line,) = read_lines(tmp_path)
    assert (line.seeds, line.mean) == (1, pytest.approx(0.1))  # half a grid counts as unfinished
    assert CompareArguments().seeds == "5"
