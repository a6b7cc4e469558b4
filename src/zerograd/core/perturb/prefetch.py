"""`Prefetch`: weights that live in main memory, brought to the device when they are read, the next while one is used.

What is read, and in which order, is learnt from the reads themselves, so this holds for any architecture. On a GPU the
home is pinned and copies run on a stream of their own; with a CPU as the device the same code copies at once.
"""

from collections.abc import Callable, Sequence

import torch

from zerograd.core.device import exactly, free_host_bytes, shown_bytes
from zerograd.core.parameters import Trainable

LARGE = 1 << 20  # bytes; smaller tensors lie on the device
PART = 24 << 20  # bytes of a copy; larger matrices are handled in parts, so that two copies stay below 64 MB
SLOTS = 3  # what is used, what comes next, and what is on its way back

Rows = tuple[int, int]  # [first, last) of a tensor
Piece = tuple[Trainable, Rows | None]
Change = Callable[[torch.Tensor], None]  # of a piece, in place


def move_small(model: torch.nn.Module, device: torch.device) -> None:
    """Put what it does not hold on the device: buffers and small tensors; pin the large ones for a GPU.

    Raises:
        MemoryError: Too little main memory to pin them.
    """
    adapter = hasattr(model, "peft_config")  # what is tuned of it is used where it is computed
    large = {id(p): p for p in model.parameters() if p.nbytes >= LARGE and not (adapter and p.requires_grad)}
    if device.type == "cuda":
        # PyTorch pins whole powers of two; what is pinned is freed where it was, one after the other
        need = sum((1 << (p.nbytes - 1).bit_length()) - p.nbytes for p in large.values() if not p.is_pinned())
        need += max((p.nbytes for p in large.values()), default=0)
        free = free_host_bytes()
        if need > free:
            raise MemoryError(
                f"pinning the weights takes {shown_bytes(need)} more of main memory, and {shown_bytes(free)} are free: "
                f"{shown_bytes(need - free)} are missing. Load them in a 16-bit dtype, or take a smaller model."
            )
        for parameter in large.values():
            parameter.data = parameter.data.pin_memory()
    for module in model.modules():
        for name, tensor in module._buffers.items():
            module._buffers[name] = None if tensor is None else tensor.to(device)
        for tensor in module._parameters.values():
            if tensor is not None and id(tensor) not in large:
                tensor.data = tensor.data.to(device)


class Prefetch:
    """Buffers on the device for weights whose home is main memory.

    Args:
        device: Where the forward passes run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device = exactly(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers: list[torch.Tensor | None] = [None] * SLOTS
        self._ready: dict[Piece, tuple[int, torch.Tensor, torch.cuda.Event | None]] = {}
        self._next_slot = 0
        self._after: dict[Piece, Piece] = {}  # what was read after what
        self._last: Piece | None = None

    def holds(self, entry: Trainable) -> bool:
        """Whether an entry's home is main memory."""
        return (
            entry.tensor.nbytes >= LARGE
            and entry.tensor.is_contiguous()
            and (entry.tensor.device != self.device or self.device.type == "cpu")
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(b.nbytes for b in self._buffers if b is not None)

    def bring(self, entry: Trainable, rows: Rows | None) -> torch.Tensor:
        """A tensor, or some of its rows, on the device, for the current stream; it lasts until the next call."""
        piece = (entry, rows)
        if self._last is not None:
            self._after[self._last] = piece
        self._last = piece
        return self._bring(piece, self._after.get(piece))

    def update(self, changes: Sequence[tuple[Piece, Change]]) -> None:
        """Bring each piece, change it on the device, and take it home, the next one being fetched meanwhile."""
        self.forget()
        following = [piece for piece, _ in changes[1:]]
        for (piece, change), coming in zip(changes, [*following, None], strict=True):
            tensor = self._bring(piece, coming)
            change(tensor)
            self._home(piece).copy_(tensor, non_blocking=True)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).synchronize()  # the home is read by the CPU

    def forget(self) -> None:
        """Drop what was fetched ahead: the weights are about to change."""
        if self._stream is not None:
            self._stream.synchronize()
        self._ready.clear()
        self._last = None

    def _bring(self, piece: Piece, coming: Piece | None) -> torch.Tensor:
        if piece not in self._ready:
            self._fetch(piece)
        _, tensor, event = self._ready.pop(piece)
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
        if coming is not None and coming not in self._ready:
            self._fetch(coming)
        return tensor

    def _home(self, piece: Piece) -> torch.Tensor:
        entry, rows = piece
        return entry.tensor.detach() if rows is None else entry.tensor.detach()[slice(*rows)]

    def _fetch(self, piece: Piece) -> None:
        home, slot = self._home(piece).contiguous(), self._next_slot
        self._next_slot = (slot + 1) % SLOTS
        for other in [p for p, (used, _, _) in self._ready.items() if used == slot]:
            del self._ready[other]
        buffer = self._buffers[slot]
        if buffer is None or buffer.numel() < home.nbytes:
            if buffer is not None and self._stream is not None:
                buffer.record_stream(self._stream)  # a copy that nobody waited for may still be running
            self._buffers[slot] = buffer = None
            self._buffers[slot] = buffer = torch.empty(home.nbytes, dtype=torch.uint8, device=self.device)
        tensor = buffer[: home.nbytes].view(home.dtype).view(home.shape)
        if self._stream is None:
            tensor.copy_(home)
            self._ready[piece] = (slot, tensor, None)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))  # until the buffer's last reader is done
        with torch.cuda.stream(self._stream):
            tensor.copy_(home, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._ready[piece] = (slot, tensor, event)
