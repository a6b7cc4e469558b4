"""`MeZOConfig`: `transformers.TrainingArguments` and the few settings that forward-only training adds."""

import logging
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from zerograd.core.directions import check_directions
from zerograd.core.perturb import check_probing
from zerograd.core.scaling import SCALINGS
from zerograd.core.specs import parse
from zerograd.estimators import ESTIMATORS
from zerograd.evaluation.sampling import Sampling
from zerograd.schedules import parse_schedule
from zerograd.training.fields import FIELDS, check_schedule, check_unused, idle_settings
from zerograd.training.pairs import check_clashes
from zerograd.training.ranges import check_ranges
from zerograd.training.settings import WEIGHTS, documented
from zerograd.updates import UPDATES

logger = logging.getLogger(__name__)

# settings that are called the same in `MeZO`
OWN = ("distribution", "blocks", "probing", "population_rows", "extra_byte", "allow_unread")
OWN_DEFAULTS = (  # settings of the Trainer's that have other defaults here
    "learning_rate", "lr_scheduler_type", "max_grad_norm", "gradient_checkpointing", "bf16",
)  # fmt: skip
SAVING = ("end", "checkpoints", "never")
DECIDING = (  # of `TrainingArguments`' own settings: which of them decide how the weights move
    "weight_decay", "per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed",
)  # fmt: skip


@documented
@dataclass
class MeZOArguments:
    """The settings of `zerograd.MeZO`, to be mixed into any `TrainingArguments`; the defaults are MeZO's.

    Put it in front of the class of a trainer's arguments, and say `@dataclass` again:

        @dataclass
        class MyConfig(MeZOArguments, SFTConfig):
            pass

    A setting of the Trainer's that MeZO cannot do is refused (docs/training-arguments.md lists all of them). Tables,
    definitions and appendices are those of arXiv 2305.17333; a setting without a source is this package's own.

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
        rank (int, default None): Rank of the directions of matrices (EGGROLL, LOZO); 0: full. Default: 0, and 1 where
            the model writes texts that are rated, and so much is tuned that only thin changes fit side by side.
        blocks (int, default 0): Blocks (layers; embeddings; the rest) that a probe moves (LeZO, arXiv 2410.09823); 0:
            all.
        scaling (str, default None): variance or expectation: scale by block (Definitions 6 and 7); settings as in
            variance:by=gradient_norm,every=epoch
        probing (str, default "auto"): How a forward runs at moved weights: streamed (noise is added as each tensor is
            read), snapshot (a copy of the trainable weights is kept), in_place (added and taken away, exact up to
            rounding), population (all sides of all probes as rows of one batch, where directions are of low rank or
            little is tuned), or auto: population where a rank is set, else snapshot up to 64 MB of trainable weights,
            else streamed.
        population_rows (int, default 0): Most rows of a population's forward; 0: as memory allows.
        temperature (float, default 0.0): Of the texts that are rated in training: logits are divided by it; 0: the
            most likely token. Numbers to draw with come from the run's seed.
        top_p (float, default 1.0): Draw from the most likely tokens that together have this probability (arXiv
            1904.09751).
        own_draws (bool, default False): Probes draw with numbers of their own, and not all with the same.
        extra_byte (bool, default False): Keep 8 more bits of every 16-bit weight, in 1 byte a weight of memory.
        max_skipped_steps (int, default 10): Consecutive steps with a non-finite loss after which the run stops.
        allow_unread (bool, default False): Accept trainable tensors that the first step's forwards do not read.
        save_full_model (str, default "end"): Save the whole model: end (of training), checkpoints (in each, and at the
            end) or never.
        resume (bool, default False): Continue the run in output_dir, or start it where there is none.
        start_over (bool, default False): Begin anew in an output_dir that holds a run, which is moved to its subfolder
            earlier-1 (earlier-2, ...).
        learning_rate (float, default 1e-6): Learning rate; the paper's grid is 1e-7 to 1e-5 (Tables 13 and 14).
        lr_scheduler_type (str, default "constant"): Any scheduler of transformers; the paper's is constant.
        max_grad_norm (float, default 0.0): Must stay 0: there is no gradient to clip.
        gradient_checkpointing (bool, default None): Does nothing: there is no backward pass.
        bf16 (bool, default False): Run the forwards under autocast in bfloat16. Weights keep the dtype they were loaded
            in; loaded in bfloat16, they take half the memory.

    Raises:
        ValueError: A setting that cannot be.
    """

    eps: Annotated[float, WEIGHTS] = 1e-3
    num_probes: Annotated[int, WEIGHTS] = 1
    probe_schedule: Annotated[str, WEIGHTS] = "constant"
    estimator: Annotated[str, WEIGHTS] = "spsa"
    update: Annotated[str, WEIGHTS] = "sgd"
    distribution: Annotated[str, WEIGHTS] = "gaussian"
    rank: Annotated[int | None, WEIGHTS] = None
    blocks: Annotated[int, WEIGHTS] = 0
    scaling: Annotated[str | None, WEIGHTS] = None
    probing: str = "auto"
    population_rows: int = 0
    temperature: Annotated[float, WEIGHTS] = 0.0
    top_p: Annotated[float, WEIGHTS] = 1.0
    own_draws: Annotated[bool, WEIGHTS] = False
    extra_byte: bool = False
    max_skipped_steps: int = 10
    allow_unread: bool = False
    save_full_model: str = "end"
    resume: bool = False
    start_over: bool = False
    learning_rate: Annotated[float, WEIGHTS] = 1e-6
    lr_scheduler_type: Annotated[str, WEIGHTS] = "constant"
    max_grad_norm: float = 0.0
    gradient_checkpointing: bool | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        self.check()
        if not isinstance(self, TrainingArguments):
            return  # MeZO's settings alone
        check_unused(vars(self))
        check_schedule(vars(self))
        say_idle(self)
        check_machine(self)
        self.metric_given = self.metric_for_best_model is not None  # the Trainer fills in the loss
        super().__post_init__()  # type: ignore[misc]
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # else PyTorch warns at every epoch

    def check(self) -> None:
        """ValueError for a setting that cannot be, whatever the model."""
        check_ranges(vars(self))
        self.optimizer_settings(1)
        check_probing(self.probing)
        self.sampling()
        if self.save_full_model not in SAVING:
            raise ValueError(f"unknown save_full_model {self.save_full_model!r}; choose one of {', '.join(SAVING)}")
        check_clashes({"resume": self.resume, "start_over": self.start_over})

    def sampling(self) -> Sampling:
        """How texts that are rated are written. ValueError for a setting out of range."""
        return Sampling(self.temperature, self.top_p, not self.own_draws)

    def optimizer_settings(self, max_steps: int, epoch: int = 1) -> dict[str, Any]:
        """The settings as `MeZO` takes them.

        Args:
            max_steps: Steps of the run, for a linear schedule; 0 where they are not known.
            epoch: Steps of an epoch, for `every=epoch` of a scaling.

        Raises:
            ValueError: A setting that cannot be.
        """
        check_directions(self.distribution, self.rank or 0)
        n = parse_schedule(self.probe_schedule, self.num_probes, max_steps)
        made = {"eps": self.eps, "n": n}
        scaling = None if self.scaling is None else self.scaling.replace("every=epoch", f"every={epoch}")
        return {
            "estimator": parse(self.estimator, ESTIMATORS, "estimator", made),
            "update": parse(self.update, UPDATES, "update"),
            "scaling": None if scaling is None else parse(scaling, SCALINGS, "scaling"),
            "rank": self.rank or 0,
            **{key: getattr(self, key) for key in OWN},
            "max_skipped": self.max_skipped_steps,
        }


@documented
@dataclass
class MeZOConfig(MeZOArguments, TrainingArguments):
    """`TrainingArguments` with MeZO's settings, and the paper's defaults where they differ from the Trainer's.

    The weights are trained in the dtype they were loaded in.

    Raises:
        ValueError: A setting out of range, or one that MeZO cannot do: docs/training-arguments.md says which, and why.
    """


def changed(args: TrainingArguments) -> dict[str, Any]:
    """The settings that differ from the defaults of their class.

    Args:
        args: Any training arguments.
    """
    default = {f.name: f.default if f.default is not MISSING else None for f in fields(args)}
    return {name: value for name, value in vars(args).items() if name in default and value != default[name]}


def say_idle(args: TrainingArguments) -> None:
    """Warn of settings that do nothing here, and of those that a newer transformers has and the table has not.

    Args:
        args: Any training arguments.
    """
    given = changed(args)
    for setting, why in idle_settings(given).items():
        logger.warning("%s does nothing here: %s", setting, why)
    for f in fields(TrainingArguments):
        if f.name in given and f.name not in FIELDS and given[f.name]:
            logger.warning(
                "%s=%r is a setting of this version of transformers that zerograd has not been tried with: it may do "
                "nothing, or what it does for backpropagation", f.name, given[f.name],
            )  # fmt: skip


def check_machine(args: TrainingArguments) -> None:
    """ValueError for what this machine lacks: a GPU for bfloat16, a library that is to be reported to."""
    if args.bf16 and not args.use_cpu and not is_torch_bf16_gpu_available():
        raise ValueError(
            "bf16=True needs a GPU that has bfloat16, and there is none: leave it out (use_cpu=True runs it on the "
            "CPU, slowly)"
        )
    wanted = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    there = get_available_reporting_integrations()
    for name in wanted:
        if name not in ("all", "none", *there):
            raise ValueError(
                f"report_to={name!r} is not installed, or transformers does not know it: install it, or choose one of "
                f"{', '.join(('none', *there))}"
            )
