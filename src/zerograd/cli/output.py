"""Where a command writes: files whole or not at all, with a sentence that names them, and folders one run at a time."""

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zerograd.core.lock import InUseError, Lock
from zerograd.core.safety import whole_file

LOCK = ".lock"  # in an output folder, while a run writes it


@contextmanager
def writing(folder: Path, empty: bool = False) -> Iterator[None]:
    """Inside, no other run writes an output folder; it is made where it is missing, and goes again if it stays empty.

    Args:
        folder: The folder.
        empty: Refuse one with anything in it.

    Raises:
        InUseError: Another run writes it.
        FileExistsError: It is a file, or is not empty.
        OSError: It cannot be written.
    """
    refuse_file(folder)
    if empty:
        _refuse_full(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        lock = Lock(folder / LOCK, f"the folder {folder}")
    except InUseError:
        raise
    except OSError as error:
        remove_empty(missing)
        raise OSError(f"cannot write to the folder {folder}: {error.strerror}; choose another place") from error
    try:
        if empty:
            _refuse_full(folder)
        yield
    finally:
        lock.release()
        remove_empty(missing)


def refuse_file(folder: Path) -> None:
    """FileExistsError where a folder is to be, or to be made, and a file is."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise FileExistsError(f"{there} is a file; it must be a folder")


def check_file(flag: str, name: str) -> None:
    """Refuse a file that a flag names where it could not be written: FileNotFoundError, FileExistsError."""
    path = Path(name).absolute()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {flag} {name} does not exist; make it first")
    if path.is_dir():
        raise FileExistsError(f"{flag} {name} is a folder; it must be a file")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: It cannot be written; with its path and size.
    """
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise OSError(
            f"cannot write {path} ({len(data) / 1000:.1f} kB): {error.strerror or error}; free some space or choose "
            "another place, and run the command again"
        ) from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON whole or not at all; OSError as `write_whole`."""
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())


def write_picture(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib as a PNG, whole or not at all; OSError as `write_whole`."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    write_whole(path, png.getvalue())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. ValueError for a file that holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold what zerograd wrote there, but {values!r:.40}")
    return values


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Inside, values of a file of ours are read: ValueError with its path where they are not what was written."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} does not hold what zerograd writes there: {error!r}") from error


def print_all(sentences: Iterable[str]) -> None:
    """Print sentences, without the empty ones."""
    for sentence in filter(None, sentences):
        print(sentence)


def _refuse_full(folder: Path) -> None:
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose another --output_dir")


def remove_empty(made: list[Path]) -> None:
    """Remove folders that were made for nothing, the innermost first."""
    for path in made:
        try:
            os.rmdir(path)
        except OSError:  # something is in it, or it was never made
            continue
