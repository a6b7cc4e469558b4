"""Hyperparameters by name: every row of Tables 13 and 14 of arXiv 2305.17333, D.4 and D.6, and the demo's own.

Rows named roberta are of masked models (Table 13: RoBERTa-large), rows named opt of causal ones (Table 14). Numbers
alone: the help shows them without torch, and `defaults` adds what needs a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zerograd.tasks.task import CAUSAL_GRID, MASKED_GRID
from zerograd.training.settings import did_you_mean

EVERY_RUN: dict[str, Any] = {
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "load_best_model_at_end": True,
    "logging_steps": 0.05,
}
BACKPROP = {"adam": "-ft", "sgd": "-ft-sgd"}  # how names of presets and methods say it
DEMO: dict[str, Any] = {"per_device_train_batch_size": 16, "max_steps": 1000, "eval_steps": 0.1, "save_steps": 0.1}
DEMO_RATES = {"full": 5e-5, "lora": 1e-3, "prefix": 1e-2, "prompt": 1e-2, "head": 1e-3}


@dataclass(frozen=True)
class Preset:
    """One row of the paper's hyperparameters: its grids, and the values that a single run takes.

    Args:
        learning_rates: The grid.
        learning_rate: Where a single run starts: inside the grid, as the paper's code does where it says.
        batch_sizes: The grid.
        optimizer: mezo, adam or sgd.
        tune: full, lora, prefix or head.
        eps: Perturbation scale (MeZO).
        weight_decay: Weight decay.
        steps: Training steps; where 0, `epochs` counts.
        epochs: Passes over the training rows.
        few_shot_batch_sizes: The grid where k is small; () for the same.
        every: Share of the run after which the dev rows are evaluated.
        more: Other settings of MeZO.
    """

    learning_rates: tuple[float, ...]
    learning_rate: float
    batch_sizes: tuple[int, ...]
    optimizer: str = "mezo"
    tune: str = "full"
    eps: float = 1e-3
    weight_decay: float = 0.0
    steps: int = 0
    epochs: int = 0
    few_shot_batch_sizes: tuple[int, ...] = ()
    every: float = 0.1
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """The middle of the grid."""
        return self.batch_sizes[len(self.batch_sizes) // 2]

    def arguments(self) -> dict[str, Any]:
        """As arguments of the Trainer (and of MeZO's)."""
        length = {"max_steps": self.steps} if self.steps else {"num_train_epochs": self.epochs}
        mezo = {"eps": self.eps} if self.optimizer == "mezo" else {}
        return {
            "learning_rate": self.learning_rate, "per_device_train_batch_size": self.batch_size,
            "weight_decay": self.weight_decay, "eval_steps": self.every, "save_steps": self.every, **mezo, **length,
            **self.more,
        }  # fmt: skip


MASKED: dict[str, Any] = {"batch_sizes": (MASKED_GRID.batch_size,), "steps": MASKED_GRID.steps}
CAUSAL: dict[str, Any] = {"batch_sizes": (CAUSAL_GRID.batch_size,), "steps": CAUSAL_GRID.steps, "every": 0.2}
MASKED_FT: dict[str, Any] = {"batch_sizes": (8, 16, 32), "steps": 1000}
CAUSAL_FT: dict[str, Any] = {"batch_sizes": (8,), "epochs": 5, "every": 0.2}
ES: dict[str, Any] = {"estimator": "rank", "num_probes": 16, "rank": 1, "probing": "population"}
FEW: dict[str, Any] = {"few_shot_batch_sizes": (2, 4, 8)}
PRESETS = {
    # Table 13
    "roberta": Preset(MASKED_GRID.learning_rates, 1e-6, **MASKED),
    "roberta-prefix": Preset((1e-2, 5e-3, 1e-3), 1e-2, tune="prefix", eps=1e-1, **MASKED),
    "roberta-lora": Preset((1e-5, 5e-5, 1e-4), 1e-4, tune="lora", weight_decay=0.1, **MASKED),
    "roberta-ft": Preset((1e-5, 3e-5, 5e-5), 3e-5, optimizer="adam", **MASKED_FT, **FEW),
    "roberta-ft-sgd": Preset((1e-4, 5e-4, 1e-3, 5e-3, 1e-2), 1e-3, optimizer="sgd", **MASKED_FT, **FEW),
    "roberta-ft-prefix": Preset((1e-2, 3e-2, 5e-2), 3e-2, optimizer="adam", tune="prefix", **MASKED_FT),
    "roberta-ft-lora": Preset((1e-4, 3e-4, 5e-4), 3e-4, (4, 8, 16), optimizer="adam", tune="lora", steps=1000),
    # Table 14
    "opt": Preset(CAUSAL_GRID.learning_rates, 1e-6, **CAUSAL),
    "opt-prefix": Preset((1e-2, 1e-3), 1e-3, tune="prefix", eps=1e-1, **CAUSAL),
    "opt-lora": Preset((1e-4, 5e-5), 5e-5, tune="lora", eps=1e-2, **CAUSAL),
    "opt-ft": Preset((1e-5, 5e-5, 8e-5), 1e-5, optimizer="adam", **CAUSAL_FT),
    # Appendix D.4: head tuning, and D.6: F1 as the objective
    "opt-head": Preset((1e-4, 5e-4), 1e-4, optimizer="adam", tune="head", **CAUSAL_FT),
    "opt-f1": Preset((1e-6, 5e-6, 1e-5), 1e-6, **CAUSAL),
    "opt-f1-prefix": Preset((1e-1, 5e-2, 1e-2), 1e-2, tune="prefix", eps=1e-1, **CAUSAL),
    # evolution strategies (arXiv 2509.24372, 2511.16652): centred ranks of 32 members, thin directions
    "es": Preset((3e-3, 1e-2, 3e-2), 1e-2, (4,), eps=1e-2, steps=100, more=ES),
}  # fmt: skip


def get_preset(name: str) -> Preset:
    """The preset of that name. ValueError with the nearest one if there is none."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_for(masked: bool, tune: str, optimizer: str = "mezo") -> Preset:
    """The row of the tables for a kind of model, what is tuned, and how; the nearest row where there is none.

    Prompt tuning takes prefix tuning's, MeZO on a head takes LoRA's, and backpropagation on a causal model that the
    paper did not run so takes the masked model's.
    """
    kind = "roberta" if masked else "opt"
    tune = {"prompt": "prefix", "head": "lora" if optimizer == "mezo" else "head"}.get(tune, tune)
    if tune == "head":
        return PRESETS["opt-head"]
    name = kind + BACKPROP.get(optimizer, "") + ("" if tune == "full" else f"-{tune}")
    return PRESETS[name if name in PRESETS else name.replace("opt", "roberta")]


def check_preset(name: str, tune: str | None) -> None:
    """ValueError where a preset is unknown, is for backpropagation, or tunes something else than what is asked for."""
    row = get_preset(name)
    if row.optimizer != "mezo":
        method = BACKPROP[row.optimizer].removeprefix("-") + ("" if row.tune == "full" else f"-{row.tune}")
        raise ValueError(
            f"preset {name!r} is for backpropagation: run it with `zerograd compare --methods "
            f"{method.replace('ft-head', 'head')}`"
        )
    if tune not in (None, row.tune):
        raise ValueError(f"preset {name!r} is for --tune {row.tune}, and --tune {tune} is asked for")


def run_settings(masked: bool | None, tune: str, preset: str | None = None) -> dict[str, Any]:
    """What a run of MeZO takes where nothing is said.

    Args:
        masked: Whether the model is a masked one; None: the demo's.
        tune: What is tuned.
        preset: A preset that comes before the model's kind.

    Raises:
        ValueError: As `check_preset`.
    """
    if preset is not None:
        check_preset(preset, tune)
        return EVERY_RUN | get_preset(preset).arguments()
    row = preset_for(bool(masked), tune)
    if masked is None:
        return EVERY_RUN | {"eps": row.eps, "learning_rate": DEMO_RATES[tune], **DEMO}
    return EVERY_RUN | row.arguments()
