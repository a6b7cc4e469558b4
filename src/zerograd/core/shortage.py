"""Running out of memory, said with the part of the plan that was exceeded."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OutOfMemoryError(MemoryError):
    """A step that needed more memory than there is."""


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
        if "DefaultCPUAllocator" not in str(error) and "not enough memory" not in str(error):
            raise
        raise _named(part, advice, error) from error


def _named(part: str, advice: str, error: BaseException) -> OutOfMemoryError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return OutOfMemoryError(f"out of memory for {part}: {first} {advice} `zerograd plan` shows what each part takes.")
