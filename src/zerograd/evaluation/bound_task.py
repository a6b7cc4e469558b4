"""`BoundTask`: a task, a tokenizer and a model's kind bound together, as the Trainer and the command line use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from zerograd.evaluation.evaluate import Prediction, accuracy, candidate_loss, score_candidates
from zerograd.evaluation.generate import generate
from zerograd.evaluation.logprobs import packable_length
from zerograd.evaluation.losses import answer_loss, cross_entropy, error_rate
from zerograd.evaluation.metrics import exact_match, f1, mean
from zerograd.evaluation.packing import collate
from zerograd.evaluation.prefixed import virtual_tokens
from zerograd.evaluation.rewards import Reward
from zerograd.tasks import Row, Task, get_task
from zerograd.tasks.prompts import Example, Prompter, PromptError

NO_LIMIT = 1_000_000  # what tokenizers without a limit report is larger
LOSSES = {"cross_entropy": (cross_entropy, "all"), "answer": (answer_loss, "right"), "text": (answer_loss, "text"),
          "accuracy": (error_rate, "all")}  # fmt: skip
GENERATED = {"f1": f1, "exact_match": exact_match}
FITTING = {  # objectives by kind of task, the default first
    "classification": ("cross_entropy", "accuracy", "answer", "text"),
    "choice": ("answer", "cross_entropy", "accuracy", "text"),
    "generation": ("answer", "text", "f1", "exact_match"),
    "chat": ("answer", "text"),
}
DEFAULTS = {kind: fitting[0] for kind, fitting in FITTING.items()}


def is_masked_lm(config: Any) -> bool:
    """Whether a model of this configuration fills masks (else it continues text).

    Raises:
        PromptError: It does neither.
    """
    names = config.architectures or []
    if any(n in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() and "ForMaskedLM" in n for n in names):
        return True
    if any(n in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for n in names):
        return False
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return True
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    raise PromptError(f"{config.model_type!r} is neither a causal nor a masked language model")


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model of this configuration can read."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and "roberta" in config.model_type:
        positions -= 2  # its positions start behind its padding index
    return min([n for n in (positions, tokenizer.model_max_length) if n is not None and n < NO_LIMIT], default=NO_LIMIT)


@dataclass(frozen=True)
class BoundTask:
    """Everything about a run that knows text: prompts, collation, objective, predictions, metrics.

    Args:
        prompter: The task's prompts for the model's tokenizer.
        pad_token_id: Fills batches.
        packed_length: As `zerograd.evaluation.logprobs.packable_length` says for the model.
        vocabulary: Size of the model's vocabulary.
        objective: What training minimises: a loss, or 1 - accuracy, or minus f1, exact_match or a reward.
    """

    prompter: Prompter
    pad_token_id: int
    packed_length: int
    vocabulary: int
    objective: str

    @classmethod
    def make(cls, task: str | Task, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> "BoundTask":
        """Bind a task (or the name of one) to a model and its tokenizer.

        Raises:
            PromptError, ValueError: They do not fit.
        """
        if tokenizer is None:
            raise PromptError("a task needs the tokenizer: pass processing_class=tokenizer")
        task = get_task(task) if isinstance(task, str) else task
        objective = task.objective or DEFAULTS[task.kind]
        check_objective(task, objective)
        limit = context_length(model.config, tokenizer) - virtual_tokens(model)
        masked = is_masked_lm(model.config)
        generated = _generates(objective) or (task.kind == "generation")
        prompter = Prompter(task, tokenizer, masked, limit, task.max_new_tokens if generated else 0)
        if generated and masked:
            raise PromptError(f"objective {objective!r} lets the model write, which a masked language model cannot do")
        pad = tokenizer.pad_token_id
        packed = 0 if masked or prompter.label_ids is not None else packable_length(model)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        return cls(
            prompter, int(pad if pad is not None else tokenizer.eos_token_id or 0), packed, vocabulary, objective
        )

    @property
    def task(self) -> Task:
        """The task."""
        return self.prompter.task

    @property
    def metric(self) -> str:
        """The metric that is reported first and selects the best checkpoint; all but loss are better when larger."""
        return metric_of(self.task)

    @property
    def generates(self) -> bool:
        """Whether a probe of the objective generates text, one forward a token."""
        return _generates(self.objective)

    @cached_property
    def reward(self) -> Reward | None:
        """The user's function."""
        return Reward.load(self.objective) if ":" in self.objective else None

    def encode(self, rows: Any) -> list[Example]:
        """Rows to examples; examples pass through."""
        rows = list(rows)
        return rows if rows and isinstance(rows[0], Example) else self.prompter.encode(rows)[0]

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """A batch for `loss`."""
        if self.generates:
            return {"rows": list(examples)}
        branches = LOSSES[self.objective][1]
        longest = max(e.length for e in examples)
        restricted = self.prompter.label_ids if branches == "all" else None
        return collate(
            examples, self.pad_token_id, branches=branches, packed=longest <= self.packed_length, label_ids=restricted,
            vocabulary=len(restricted) if restricted else self.vocabulary,
        )  # fmt: skip

    def loss(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """The training objective: float32 scalar, to be minimised."""
        if not self.generates:
            return LOSSES[self.objective][0](model, batch)
        answers = self.generate(model, batch["rows"])
        return -torch.tensor(mean(self._rate(batch["rows"], answers, self.objective)))

    def generate(self, model: Any, examples: Sequence[Example], bar: Any = None) -> list[str]:
        """Greedy answers to the examples' prompts."""
        return generate(
            model, self.prompter.tokenizer, [e.prefix for e in examples], stop=self.task.stop,
            max_new_tokens=self.task.max_new_tokens, pad_token_id=self.pad_token_id, bar=bar,
        )  # fmt: skip

    def predict(self, model: Any, examples: Sequence[Example], progress: bool = True) -> list[Prediction]:
        """Scores or answers, in the order of the examples. The model is put into eval mode."""
        model.eval()
        if self.task.kind == "generation" or self.reward is not None:
            return self._predict_answers(model, examples, progress)
        scores = score_candidates(
            model, examples, pad_token_id=self.pad_token_id, packed_length=self.packed_length, progress=progress
        )
        if self.task.kind == "chat":
            return [Prediction(e.index, s) for e, s in zip(examples, scores, strict=True)]
        several = self.task.correct is not None or any(len(e.query.correct) > 1 for e in examples)
        return [
            Prediction(e.index, s, int(np.argmax(s)), list(e.query.correct) if several else e.query.correct[0])
            for e, s in zip(examples, scores, strict=True)
        ]

    def _predict_answers(self, model: Any, examples: Sequence[Example], progress: bool) -> list[Prediction]:
        with tqdm(total=len(examples), desc="generating", unit="ex", disable=not progress, leave=False) as bar:
            answers = self.generate(model, examples, bar)
        names = list(GENERATED) if all(e.query.answers for e in examples) else []
        names += [self.objective] if self.reward is not None else []
        names.sort(key=lambda name: name != (self.objective if self.metric == "reward" else self.metric))
        rated = {name: self._rate(examples, answers, name) for name in names}
        return [
            Prediction(
                e.index, predicted=answer, answers=list(e.query.answers) or None,
                metrics={"reward" if ":" in name else name: values[i] for name, values in rated.items()},
            )
            for i, (e, answer) in enumerate(zip(examples, answers, strict=True))
        ]  # fmt: skip

    def _rate(self, examples: Sequence[Example], answers: Sequence[str], name: str) -> list[float]:
        if self.reward is not None and name == self.objective:
            return self.reward(examples, answers)
        return [GENERATED[name](answer, e.query.answers) for e, answer in zip(examples, answers, strict=True)]

    def evaluate(self, model: Any, examples: Sequence[Example], progress: bool = True) -> dict[str, float]:
        """The task's metrics."""
        return self.measure(self.predict(model, examples, progress))

    def measure(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The metrics of predictions, the task's own first."""
        if predictions[0].metrics is not None:
            return {name: mean([(p.metrics or {})[name] for p in predictions]) for name in predictions[0].metrics}
        if self.task.kind == "chat":
            return {"loss": -mean([p.scores[0] for p in predictions if p.scores])}
        measured = {"accuracy": accuracy(predictions), "loss": candidate_loss(predictions)}
        return dict(sorted(measured.items(), key=lambda item: item[0] != self.metric))

    def draw_demos(self, pool: Sequence[Row], count: int, examples: int, each: bool, seed: int) -> list[list[Row]]:
        """Demonstrations: the first rows of the pool for all examples, or a set drawn for each; [] for none."""
        if not count:
            return []
        if self.task.kind == "chat" or (self.task.kind == "generation" and self.task.answers is None):
            raise PromptError(
                f"task {self.task.name!r} has no right answers to show as demonstrations; leave out --demos"
            )
        if count > len(pool):
            raise PromptError(f"{count} demonstrations are asked for and there are {len(pool)} training rows")
        if not each:
            return [list(pool[:count])]
        draws = (np.random.default_rng([seed, i]).permutation(len(pool))[:count] for i in range(examples))
        return [[pool[int(i)] for i in draw] for draw in draws]


def metric_of(task: Task) -> str:
    """The metric that a task is judged by."""
    objective = task.objective or DEFAULTS[task.kind]
    if ":" in objective:
        return "reward"
    if task.metric is None and objective in GENERATED:
        return objective
    return task.metric or {"generation": "f1", "chat": "loss"}.get(task.kind, "accuracy")


def check_objective(task: Task, objective: str) -> None:
    """Raise PromptError for an objective that does not fit a task's kind."""
    fitting = FITTING[task.kind] if task.kind != "generation" or task.answers is not None else ()
    if objective not in fitting and ":" not in objective:
        kind = task.kind if fitting else f"{task.kind} without answers"
        raise PromptError(
            f"objective {objective!r} does not fit task {task.name!r}, a {kind}; choose "
            f"{', '.join((*fitting, 'module:function'))}"
        )


def _generates(objective: str) -> bool:
    return ":" in objective or objective in GENERATED
