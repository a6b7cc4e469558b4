"""What keeps a run whole: files are whole or not there, errors name their cause."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch


class ProbeError(RuntimeError):
    """A forward that cannot be probed as asked: it writes to, never reads, or keeps views of a trainable tensor."""


class OutOfMemoryError(MemoryError):
    """A step that needed more memory than there is."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write; it takes its name, and the place of an older one, only when the block ends without error."""
    temporary = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def memory_for(part: str, advice: str) -> Iterator[None]:
    """Name the part of `zerograd plan` that an allocation inside the block belongs to, where it fails.

    Args:
        part: As the plan calls it, and what it is.
        advice: What to do.

    Raises:
        OutOfMemoryError: Instead of PyTorch's own error; an inner block's name stands.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _named(part, advice, error) from error
    except RuntimeError as error:
        if not is_shortage(error):
            raise
        raise _named(part, advice, error) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error) if isinstance(error, RuntimeError) else ""
    return "DefaultCPUAllocator" in text or "not enough memory" in text


def _named(part: str, advice: str, error: BaseException) -> OutOfMemoryError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return OutOfMemoryError(f"out of memory for {part}: {first} {advice} `zerograd plan` shows what each part takes.")
