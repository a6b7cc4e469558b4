"""`MeZOConfig`: `transformers.TrainingArguments` and the few settings that forward-only training adds."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from zerograd.core.directions import check_directions
from zerograd.core.perturb import check_probing
from zerograd.core.scales import SCALINGS
from zerograd.core.specs import parse
from zerograd.estimators import ESTIMATORS
from zerograd.schedules import parse_schedule
from zerograd.updates import UPDATES

OWN = ("distribution", "rank", "blocks", "probing", "extra_byte", "allow_unread")  # called the same in `MeZO`
SAVING = ("end", "checkpoints", "never")


@dataclass
class MeZOArguments:
    """The settings of `zerograd.MeZO` that `TrainingArguments` has no name for; the defaults are MeZO's."""

    eps: float = field(default=1e-3, metadata={"help": "Perturbation scale of a probe."})
    num_probes: int = field(
        default=1, metadata={"help": "Probes a step (n), of two forward passes each (one-sided: n + 1 in all)."}
    )
    probe_schedule: str = field(
        default="constant",
        metadata={"help": "constant; linear (from 1 to 2 n - 1 probes); or probes from steps on: 0:1,500:4."},
    )
    estimator: str = field(
        default="spsa",
        metadata={"help": "spsa, one-sided, rank or random-descent; spsa:lr_per_probe=true: the rate times n."},
    )
    update: str = field(
        default="sgd",
        metadata={
            "help": "sgd, sign, normalised, scalar-moment, momentum or adam; adam:beta2=0.99 sets one of its settings."
        },
    )
    distribution: str = field(default="gaussian", metadata={"help": "gaussian, rademacher or sphere."})
    rank: int = field(default=0, metadata={"help": "Rank of the directions of matrices; 0: full."})
    blocks: int = field(
        default=0, metadata={"help": "Blocks (layers; embeddings; the rest) that a probe moves; 0: all."}
    )
    scaling: str | None = field(
        default=None,
        metadata={
            "help": "variance or expectation: scale by block; settings as in variance:by=gradient_norm,every=epoch"
        },
    )
    probing: str = field(default="auto", metadata={"help": "auto, streamed, snapshot or in_place."})
    extra_byte: bool = field(
        default=False, metadata={"help": "Keep 8 more bits of every 16-bit weight, in 1 byte a weight of memory."}
    )
    max_skipped_steps: int = field(
        default=10, metadata={"help": "Consecutive steps with a non-finite loss after which the run stops."}
    )
    allow_unread: bool = field(
        default=False, metadata={"help": "Accept trainable tensors that the first step's forwards do not read."}
    )
    save_full_model: str = field(
        default="end",
        metadata={"help": "Save the whole model: end (of training), checkpoints (in each, and at the end) or never."},
    )
    resume: bool = field(
        default=False, metadata={"help": "Continue the run in output_dir, or start it where there is none."}
    )

    def optimizer_settings(self, max_steps: int, epoch: int = 1) -> dict[str, Any]:
        """The settings as `MeZO` takes them.

        Args:
            max_steps: Steps of the run, for a linear schedule; 0 where they are not known.
            epoch: Steps of an epoch, for `every=epoch` of a scaling.

        Raises:
            ValueError: A setting that cannot be.
        """
        check_directions(self.distribution, self.rank)
        n = parse_schedule(self.probe_schedule, self.num_probes, max_steps)
        made = {"eps": self.eps, "n": n}
        scaling = None if self.scaling is None else self.scaling.replace("every=epoch", f"every={epoch}")
        return {
            "estimator": parse(self.estimator, ESTIMATORS, "estimator", made),
            "update": parse(self.update, UPDATES, "update"),
            "scaling": None if scaling is None else parse(scaling, SCALINGS, "scaling"),
            **{key: getattr(self, key) for key in OWN},
            "max_skipped": self.max_skipped_steps,
        }


@dataclass
class MeZOConfig(MeZOArguments, TrainingArguments):
    """`TrainingArguments` with MeZO's settings, and the paper's defaults where they differ from the Trainer's.

    Constant learning rate 1e-6, eps 1e-3, no gradient clipping (there is no gradient). The weights are trained in the
    dtype they were loaded in; `fp16` is refused, because its loss scaling belongs to backpropagation.

    Raises:
        ValueError: A setting out of range, or `fp16=True`.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Learning rate; the paper's grid is 1e-7 to 1e-5."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Any scheduler of transformers."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Must stay 0: there is no gradient to clip."})

    def __post_init__(self) -> None:
        self.optimizer_settings(max(1, self.max_steps))  # raises ValueError for a setting that cannot be
        check_probing(self.probing)
        if self.save_full_model not in SAVING:
            raise ValueError(f"unknown save_full_model {self.save_full_model!r}; choose one of {', '.join(SAVING)}")
        if self.fp16:
            raise ValueError(
                "fp16=True scales the loss for backpropagation, which MeZO does not do; load the model in float16 "
                "instead (dtype=torch.float16, --dtype float16)"
            )
        if self.max_grad_norm:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} cannot be applied: MeZO has no gradient to clip")
        self.metric_given = self.metric_for_best_model is not None  # the Trainer fills in the loss
        super().__post_init__()
