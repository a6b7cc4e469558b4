"""The base weights on disk, for going back to an earlier step: raw bytes, written and read tensor by tensor.

Going back means base weights + the log up to that step. Only a run that must end at its best checkpoint needs the
file; it is written once at the start and never held in memory.
"""

from pathlib import Path

import torch

from zerograd.core.parameters import Parameters
from zerograd.core.safety import whole_file


def save_base(path: Path, parameters: Parameters) -> None:
    """Write all trainable tensors; atomically, so that a file that exists is whole."""
    try:
        with whole_file(path) as file:
            for entry in parameters.entries:
                flat = entry.tensor.detach().contiguous().view(-1)
                if flat.numel():
                    flat.cpu().view(torch.uint8).numpy().tofile(file)
    except OSError as error:
        raise OSError(
            f"cannot write the base weights to {path} ({parameters.nbytes / 2**20:.1f} MB): {error.strerror or error}. "
            "They are needed for load_best_model_at_end; free some space or turn that off."
        ) from error  # (NumPy's error has a sentence and no number)


def load_base(path: Path, parameters: Parameters) -> None:
    """Copy the saved tensors back into the model."""
    with path.open("rb") as file, torch.no_grad():
        for entry in parameters.entries:
            data = bytearray(file.read(entry.nbytes))
            if len(data) != entry.nbytes:
                raise ValueError(f"{path} is too short for the model's trainable tensors; was it written by this run?")
            if data:
                entry.tensor.copy_(torch.frombuffer(data, dtype=entry.tensor.dtype).view(entry.tensor.shape))
