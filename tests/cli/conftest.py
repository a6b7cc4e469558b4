"""A run on data of one's own, made once and only read: its folder, and a file of rows without labels."""

import csv
import json
from pathlib import Path

import pytest

from own_run import OWN, REVIEWS, SHORT, SIZES
from zerograd.cli.main import main


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of four steps, of which an earlier one than the last is said to be the best."""
    folder = tmp_path_factory.mktemp("own") / "run"
    assert main(["train", "--data", str(REVIEWS), *OWN, *SIZES, *SHORT, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def selected(run: Path) -> int:
    """The step whose model the run saved."""
    return int(json.loads((run / "results.json").read_text())["selected_step"])


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    """Rows without the label's column, with an index of their own."""
    with REVIEWS.open(newline="") as file:
        reviews = [row["review"] for row in csv.DictReader(file)][:12]
    path = tmp_path / "new.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("index", "review"), *((100 + i, text) for i, text in enumerate(reviews))])
    return path
