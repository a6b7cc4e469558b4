"""Real SIGINTs at random moments of real steps: weights and log are those of a whole step, and nothing stays behind."""

import os
import random
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import torch

from zerograd import MeZO
from zerograd.core.records import SIZE

STEPS = 40  # of the run that is never interrupted
# In place, theta is put back up to rounding. One last bit of a loss of 3.4 is then a difference of 2 ** -22 / 2 eps in
# g, 4.7e-6 of a weight (lr 1e-2, z 4); a few steps may see one or two each. A lost step, or an eps that stays, is 1e-3.
ROUNDING = 5e-5
PROBINGS = ("snapshot", "streamed", "in_place")


class Tiny(torch.nn.Module):
    """Two layers and an embedding: some 1,400 weights, and every way in which they are read."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"embedding": (20, 16), "hidden": (32, 16), "head": (20, 32), "bias": (32,)}
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.3))

    def loss(self, step: int) -> torch.Tensor:
        """Of a batch that the step decides."""
        ids = torch.arange(8) * (step % 5 + 1) % 20
        hidden = torch.tanh(torch.nn.functional.linear(self.embedding[ids], self.hidden, self.bias))
        return torch.nn.functional.cross_entropy(hidden @ self.head.t(), (ids * 3 + step) % 20)


class Sender:
    """A process that sends this one a SIGINT so many seconds after it is asked to: no thread of ours takes part."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._write)
                while len(data := os.read(self._read, 8)) == 8:
                    until = time.perf_counter() + struct.unpack("d", data)[0]
                    while time.perf_counter() < until:
                        pass
                    os.kill(parent, signal.SIGINT)
            finally:
                os._exit(0)
        os.close(self._read)

    def after(self, seconds: float) -> None:
        """Send one."""
        os.write(self._write, struct.pack("d", seconds))

    def close(self) -> None:
        """End the process."""
        os.close(self._write)
        os.waitpid(self.pid, 0)


class Interrupts:
    """Runs that are interrupted once each, in this process.

    Args:
        folder: Where logs are written.
        seed: Of the moments.
        probing: The way of probing.
    """

    def __init__(self, folder: Path, seed: int, probing: str) -> None:
        self.folder, self.seed, self.probing = folder, seed, probing
        model, optimizer = self._make("whole")
        self.history = [_state(model)]
        start = time.perf_counter()
        for step in range(STEPS):
            optimizer.step(lambda step=step: model.loss(step))
            self.history.append(_state(model))
        self.seconds = (time.perf_counter() - start) / STEPS
        optimizer.log.close()
        self.log = (folder / "whole.zlog").read_bytes()
        self.head = len(self.log) - STEPS * SIZE
        self.sender = Sender()

    def _make(self, name: str) -> tuple[Tiny, MeZO]:
        path = self.folder / f"{name}.zlog"
        path.unlink(missing_ok=True)
        model = Tiny()
        return model, MeZO(model.named_parameters(), lr=1e-2, log=path, probing=self.probing, weight_decay=0.01)

    def case(self, number: int) -> tuple[str, str]:
        """Interrupt a run within its first few steps, look at everything, go on for two steps, look again."""
        draw = random.Random(f"{self.seed} {self.probing} {number}")
        model, optimizer = self._make("run")
        delay = draw.uniform(0, 6 * self.seconds)
        raised: BaseException | None = None
        try:
            self.sender.after(delay)
            _go(model, optimizer, STEPS)
            time.sleep(60)
        except BaseException as error:
            raised = error
        wrong = self._wrong(model, optimizer, raised)
        if not wrong:
            _go(model, optimizer, min(optimizer.steps_done + 2, STEPS))
            wrong = self._wrong(model, optimizer, KeyboardInterrupt())
        optimizer.log.close()
        _clean()
        said = f"{self.probing}, after {delay * 1e6:.0f} us, step {optimizer.steps_done}"
        return ("wrong", f"{said}: {wrong}") if wrong else ("equal", said)

    def _wrong(self, model: Tiny, optimizer: MeZO, raised: BaseException | None) -> str:
        done = optimizer.steps_done
        found: dict[str, Callable[[], bool]] = {
            f"{type(raised).__name__} instead of KeyboardInterrupt: {raised}": lambda: (
                type(raised) is not KeyboardInterrupt
            ),
            "a torch-function mode stayed": lambda: torch._C._len_torch_function_stack() > 0,
            "a dispatch mode stayed": lambda: torch._C._len_torch_dispatch_stack() > 0,
            "autograd stayed off": lambda: not torch.is_grad_enabled(),
            "the handler of SIGINT changed": lambda: signal.getsignal(signal.SIGINT) is not signal.default_int_handler,
            f"weights are not those of step {done}": lambda: not self._same(_state(model), self.history[done]),
            f"the log does not end at step {done}": lambda: not self._log_is_at(done),
        }
        return "; ".join(what for what, test in found.items() if test())

    def _same(self, state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        if self.probing == "in_place":
            return all(torch.allclose(state[name], other[name], rtol=0, atol=ROUNDING) for name in other)
        return all(torch.equal(state[name], other[name]) for name in other)

    def _log_is_at(self, done: int) -> bool:
        data = (self.folder / "run.zlog").read_bytes()
        if self.probing == "in_place":  # its losses are those of weights that are off by rounding
            return len(data) == self.head + done * SIZE
        return data == self.log[: self.head + done * SIZE]


def _clean() -> None:
    """So that a fault of one case is not found in all that follow."""
    torch.set_grad_enabled(True)
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _go(model: Tiny, optimizer: MeZO, until: int) -> None:
    while optimizer.steps_done < until:
        step = optimizer.steps_done
        optimizer.step(lambda step=step: model.loss(step))


def _state(model: Tiny) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
