"""Updates: what the records of a step do to the weights. Training and replay call the same function."""

import numpy as np

from zerograd.interrupts import uninterrupted
from zerograd.noise import Noise
from zerograd.parameters import Parameters
from zerograd.steplog import Step


def sgd_(parameters: Parameters, noise: Noise, step: Step, weight_decay: list[float]) -> None:
    """theta <- (1 - lr wd) theta - lr (1/n) sum_j g_j z_j (ZO-SGD, Definition 2 of arXiv 2305.17333), in place.

    Decay is decoupled from the gradient. Arithmetic is float32; 16-bit weights are rounded stochastically, because
    to nearest an update of 1e-6 would be lost (3 % of it survives in bfloat16). Ctrl-C waits until the pass is over.

    Args:
        parameters: The trainable tensors.
        noise: The run's directions.
        step: Projected gradients and learning rates, as logged.
        weight_decay: Per parameter group.
    """
    if step.skipped:
        return
    numbers = list(range(len(step.g)))
    scales = [noise.scale(parameters.sizes, step=step.number, probe=j, device=parameters.device) for j in numbers]
    with uninterrupted():
        for entry in parameters.entries:
            lr = step.lr[entry.group]
            noise.add_(
                entry.tensor,
                [float(np.float32(-lr * g / len(step.g) * s)) for g, s in zip(step.g, scales, strict=True)],
                tensor=entry.index,
                step=step.number,
                probes=numbers,
                keep=float(np.float32(1 - lr * weight_decay[entry.group])),
                stochastic=True,
            )
