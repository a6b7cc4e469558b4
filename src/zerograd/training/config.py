"""`MeZOConfig`: `transformers.TrainingArguments` and the few settings that forward-only training adds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from transformers import TrainingArguments

from zerograd.core.directions import check_directions
from zerograd.core.perturb import check_probing
from zerograd.core.scales import SCALINGS
from zerograd.core.specs import parse
from zerograd.estimators import ESTIMATORS
from zerograd.schedules import parse_schedule
from zerograd.training.ranges import check_ranges
from zerograd.training.settings import WEIGHTS, documented
from zerograd.updates import UPDATES

OWN = ("distribution", "rank", "blocks", "probing", "extra_byte", "allow_unread")  # called the same in `MeZO`
NO_AUTO_BATCH = (
    "auto_find_batch_size=True starts the loop again, with a smaller batch, over weights that logged steps have moved, "
    "and a resumed run could not know with which batch: leave it out, and take a smaller per_device_train_batch_size "
    "(gradient_accumulation_steps keeps the batch of a step; `zerograd plan` says what fits)"
)
SAVING = ("end", "checkpoints", "never")
DECIDING = (  # of `TrainingArguments`' own settings: which of them decide how the weights move
    "weight_decay", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed",
)  # fmt: skip


@documented
@dataclass
class MeZOArguments:
    """The settings of `zerograd.MeZO` that `TrainingArguments` has no name for; the defaults are MeZO's.

    Tables, definitions and appendices are those of arXiv 2305.17333; a setting without a source is this package's own.

    Args:
        eps (float, default 1e-3): Perturbation scale: a probe runs at theta + eps z and theta - eps z, in the units of
            the weights (Algorithm 1, Tables 13 and 14).
        num_probes (int, default 1): Probes a step (n), of two forward passes each (one-sided: n + 1 in all); n-SPSA,
            Algorithm 2.
        probe_schedule (str, default "constant"): constant; linear (from 1 to 2 n - 1 probes; Appendix A.2); or probes
            from steps on: 0:1,500:4.
        estimator (str, default "spsa"): From losses to projected gradients: spsa (Definition 1), one-sided (FZOO), rank
            (signs: arXiv 2501.17610) or random-descent; spsa:lr_per_probe=true: the rate times n (Appendix A.2).
        update (str, default "sgd"): How the weights move: sgd (Definition 2), sign, normalised, scalar-moment (arXiv
            2605.03869), momentum or adam (Appendix B.2); adam:beta2=0.99 sets one of its settings.
        distribution (str, default "gaussian"): Distribution of z, of variance 1 in every coordinate: gaussian
            (Algorithm 1), rademacher or sphere.
        rank (int, default 0): Rank of the directions of matrices (EGGROLL, LOZO); 0: full.
        blocks (int, default 0): Blocks (layers; embeddings; the rest) that a probe moves (LeZO, arXiv 2410.09823); 0:
            all.
        scaling (str, default None): variance or expectation: scale by block (Definitions 6 and 7); settings as in
            variance:by=gradient_norm,every=epoch
        probing (str, default "auto"): How a forward runs at moved weights: streamed (noise is added as each tensor is
            read), snapshot (a copy of the trainable weights is kept), in_place (added and taken away, exact up to
            rounding), or auto: snapshot up to 64 MB of trainable weights, else streamed.
        extra_byte (bool, default False): Keep 8 more bits of every 16-bit weight, in 1 byte a weight of memory.
        max_skipped_steps (int, default 10): Consecutive steps with a non-finite loss after which the run stops.
        allow_unread (bool, default False): Accept trainable tensors that the first step's forwards do not read.
        save_full_model (str, default "end"): Save the whole model: end (of training), checkpoints (in each, and at the
            end) or never.
        resume (bool, default False): Continue the run in output_dir, or start it where there is none.
    """

    eps: Annotated[float, WEIGHTS] = 1e-3
    num_probes: Annotated[int, WEIGHTS] = 1
    probe_schedule: Annotated[str, WEIGHTS] = "constant"
    estimator: Annotated[str, WEIGHTS] = "spsa"
    update: Annotated[str, WEIGHTS] = "sgd"
    distribution: Annotated[str, WEIGHTS] = "gaussian"
    rank: Annotated[int, WEIGHTS] = 0
    blocks: Annotated[int, WEIGHTS] = 0
    scaling: Annotated[str | None, WEIGHTS] = None
    probing: str = "auto"
    extra_byte: bool = False
    max_skipped_steps: int = 10
    allow_unread: bool = False
    save_full_model: str = "end"
    resume: bool = False

    def check(self) -> None:
        """ValueError for a setting that cannot be, whatever the model."""
        check_ranges(vars(self))
        self.optimizer_settings(1)
        check_probing(self.probing)
        if self.save_full_model not in SAVING:
            raise ValueError(f"unknown save_full_model {self.save_full_model!r}; choose one of {', '.join(SAVING)}")

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


@documented
@dataclass
class MeZOConfig(MeZOArguments, TrainingArguments):
    """`TrainingArguments` with MeZO's settings, and the paper's defaults where they differ from the Trainer's.

    The weights are trained in the dtype they were loaded in.

    Args:
        learning_rate (float, default 1e-6): Learning rate; the paper's grid is 1e-7 to 1e-5 (Tables 13 and 14).
        lr_scheduler_type (str, default "constant"): Any scheduler of transformers; the paper's is constant.
        max_grad_norm (float, default 0.0): Must stay 0: there is no gradient to clip.

    Raises:
        ValueError: A setting out of range, `fp16=True`, which scales the loss for backpropagation, or
            `auto_find_batch_size=True`, which starts a run again over weights that it has moved.
    """

    learning_rate: Annotated[float, WEIGHTS] = 1e-6
    lr_scheduler_type: Annotated[str, WEIGHTS] = "constant"
    max_grad_norm: float = 0.0

    def __post_init__(self) -> None:
        self.check()
        check_unused(vars(self))
        self.metric_given = self.metric_for_best_model is not None  # the Trainer fills in the loss
        super().__post_init__()


def check_unused(values: Mapping[str, Any]) -> None:
    """ValueError for what the Trainer does with backpropagation alone, and would not do here."""
    if values.get("auto_find_batch_size"):
        raise ValueError(NO_AUTO_BATCH)
    if values.get("fp16"):
        raise ValueError(
            "fp16=True scales the loss for backpropagation, which MeZO does not do; load the model in float16 "
            "instead (dtype=torch.float16, --dtype float16)"
        )
    if values.get("max_grad_norm"):
        raise ValueError(f"max_grad_norm={values['max_grad_norm']} cannot be applied: MeZO has no gradient to clip")
