"""`BoundTask`: a task bound to a tokenizer and a model, as the Trainer and the command line use it.

Rows become examples (`encode`), examples a batch (`collate`), a batch a loss (`loss`); or examples predictions
(`predict`), and these the task's metrics (`metrics`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from zerograd.core.perturb.members import Members, MixedMembersError
from zerograd.evaluation.evaluate import Prediction, accuracy, candidate_loss, score_candidates
from zerograd.evaluation.generate import answer_in, end_tokens, generate
from zerograd.evaluation.losses import LOSSES, answer_loss
from zerograd.evaluation.metrics import RATINGS, mean
from zerograd.evaluation.packable import check_decoder, packable_length
from zerograd.evaluation.packing import Batch, collate
from zerograd.evaluation.rewards import Reward, RewardError
from zerograd.evaluation.sampling import Sampling
from zerograd.evaluation.side_by_side import write
from zerograd.evaluation.virtual_tokens import virtual_tokens
from zerograd.tasks import Row, Task, get_task
from zerograd.tasks.example import Example
from zerograd.tasks.model_kind import (
    NO_VIRTUAL,
    check_task,
    context_length,
    decoder_start,
    is_encoder_decoder,
    is_masked_lm,
)
from zerograd.tasks.prompts import Prompter, PromptError


@dataclass(frozen=True)
class BoundTask:
    """A task for one model: prompts for its tokenizer, batches that it can read, its losses, answers and metrics.

    Args:
        prompter: The task's prompts for the model's tokenizer.
        pad_token_id: Fills batches.
        packed_length: As `zerograd.evaluation.packable.packable_length` says for the model.
        vocabulary: Size of the model's vocabulary.
    """

    prompter: Prompter
    pad_token_id: int
    packed_length: int
    vocabulary: int

    @classmethod
    def make(cls, task: str | Task, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> "BoundTask":
        """Bind a task (or the name of one) to a model and its tokenizer.

        Raises:
            PromptError, ValueError: They do not fit.
        """
        if tokenizer is None:
            raise PromptError("a task needs the tokenizer: pass processing_class=tokenizer")
        task = get_task(task) if isinstance(task, str) else task
        check_task(model.config, task)
        generated = task.goal.generates or task.kind == "generation"
        if is_encoder_decoder(model.config) and virtual_tokens(model):
            raise PromptError(NO_VIRTUAL)
        limit = context_length(model.config, tokenizer) - virtual_tokens(model)
        masked = is_masked_lm(model.config)
        start = decoder_start(model.config, model.generation_config) if is_encoder_decoder(model.config) else None
        prompter = Prompter(task, tokenizer, masked, limit, task.max_new_tokens if generated else 0, start)
        if start is not None:
            check_decoder(model)
        if generated and masked:
            raise PromptError(
                f"objective {task.goal.name!r} lets the model write, which a masked language model cannot do"
            )
        pad = tokenizer.pad_token_id
        return cls(
            prompter,
            pad_token_id=int(pad if pad is not None else tokenizer.eos_token_id or 0),
            packed_length=packable_length(model) if not masked and start is None and not prompter.label_ids else 0,
            vocabulary=model.get_input_embeddings().weight.shape[0],
        )

    @property
    def task(self) -> Task:
        """The task."""
        return self.prompter.task

    @property
    def objective(self) -> str:
        """Name of what training minimises."""
        return self.task.goal.name

    @property
    def metric(self) -> str:
        """The metric that is reported first and selects the best checkpoint; all but loss are better when larger."""
        return self.task.judged_by

    @property
    def generates(self) -> bool:
        """Whether a probe of the objective generates text, one forward a token."""
        return self.task.goal.generates

    @cached_property
    def reward(self) -> Reward | None:
        """The user's function."""
        return Reward.load(self.objective) if self.task.goal.is_reward else None

    def encode(
        self,
        rows: Any,
        demos: Sequence[Sequence[Row]] = (),
        *,
        split: str = "",
        notes: list[str] | None = None,
        progress: bool = False,
    ) -> list[Example]:
        """Rows to examples; examples pass through.

        Args:
            rows: Rows of the data, or examples.
            demos: As for `Prompter.encode`.
            split: What the rows are called in a note.
            notes: Gets a sentence where something had to be left out to fit the model's context.
            progress: Show a bar where there are many rows.
        """
        rows = list(rows)
        if rows and isinstance(rows[0], Example):
            return rows
        examples, truncation = self.prompter.encode(rows, demos, progress)
        if notes is not None:
            notes.append(truncation.describe(split, self.prompter.max_length))
        return examples

    def collate(self, examples: Sequence[Example]) -> dict[str, Batch]:
        """The inputs of `loss`: transformers wants a mapping."""
        if self.generates:
            return {"batch": Batch((), len(examples), prompts=tuple(examples))}
        continuations = self.task.goal.continuations
        # some encoder-decoder models add a bias to the logits of all words behind their head
        labelled = continuations == "all" and self.prompter.decoder_start is None
        label_ids = self.prompter.label_ids if labelled else None
        batch = collate(
            examples, self.pad_token_id, continuations=continuations,
            in_one_row=max(e.length for e in examples) <= self.packed_length, label_ids=label_ids,
            vocabulary=len(label_ids) if label_ids else self.vocabulary,
        )  # fmt: skip
        return {"batch": batch}

    def loss(self, model: Any, inputs: dict[str, Batch]) -> torch.Tensor:
        """The training objective of what `collate` made: float32 scalar, to be minimised."""
        batch = inputs["batch"]
        if not self.generates:
            return LOSSES[self.objective](model, batch)
        answers = self.generate(model, batch.prompts)
        return -torch.tensor(mean(self._rate(batch.prompts, answers, self.objective)))

    def member_losses(self, model: Any, batch: Batch, members: Members, sampling: Sampling) -> torch.Tensor:
        """Minus the mean rating of the texts that each member writes: (members,) float64.

        Args:
            model: Computes with the members' weights.
            batch: With prompts.
            members: Whose texts are rated.
            sampling: How they choose their tokens.

        Raises:
            RewardError: The reward failed, for which member, prompt and completion.
            MixedMembersError: Members of an encoder-decoder model, which write in turn.
        """
        examples = list(batch.prompts)
        if self.prompter.decoder_start is not None:
            if members.count > 1:
                raise MixedMembersError("an encoder-decoder model writes its texts")
            return self.loss(model, {"batch": batch}).double().view(1)
        answers: list[list[str]] = [[""] * len(examples) for _ in range(members.count)]
        tokenizer, stop = self.prompter.tokenizer, self.task.stop
        for rows in _of_one_length(examples) if virtual_tokens(model) else [range(len(examples))]:
            texts = write(
                model, [examples[i].context for i in rows], members, sampling, max_new_tokens=self.task.max_new_tokens,
                ends=end_tokens(tokenizer, model, stop), pad_token_id=self.pad_token_id,
            )  # fmt: skip
            for mine, tokens in zip(answers, texts, strict=True):
                decoded = tokenizer.batch_decode(tokens, skip_special_tokens=True)
                for i, text in zip(rows, decoded, strict=True):
                    mine[i] = answer_in(text, stop)
        return torch.tensor([-self._rating(examples, mine, m, members) for m, mine in enumerate(answers)])

    def _rating(self, examples: list[Example], answers: list[str], member: int, members: Members) -> float:
        try:
            return mean(self._rate(examples, answers, self.objective))
        except RewardError as error:
            who = f", written by member {member} of {members.count}" if members.count > 1 else ""
            raise RewardError(f"{error}{who}") from error

    def divisor(self, batch: Batch) -> int:
        """What the losses of `batch.waves()`, added up, are divided by to make the loss of the batch."""
        return (batch.tokens if LOSSES[self.objective] is answer_loss else batch.examples) if batch.parts else 1

    def generate(self, model: Any, examples: Sequence[Example], bar: Any = None) -> list[str]:
        """Greedy answers to the examples' contexts."""
        encoded = bool(examples) and examples[0].source is not None
        return generate(
            model, self.prompter.tokenizer, [e.context if e.source is None else e.source for e in examples],
            stop=self.task.stop, max_new_tokens=self.task.max_new_tokens, pad_token_id=self.pad_token_id, bar=bar,
            decoder_start=examples[0].context if encoded else None,
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
        names = list(RATINGS) if all(e.query.answers for e in examples) else []
        names += ["reward"] if self.reward is not None else []
        names.sort(key=lambda name: name != self.metric)
        rated = {name: self._rate(examples, answers, name) for name in names}
        return [
            Prediction(
                e.index, predicted=answer, answers=list(e.query.answers) or None,
                metrics={name: values[i] for name, values in rated.items()},
            )
            for i, (e, answer) in enumerate(zip(examples, answers, strict=True))
        ]  # fmt: skip

    def _rate(self, examples: Sequence[Example], answers: Sequence[str], metric: str) -> list[float]:
        if metric not in RATINGS and self.reward is not None:
            return self.reward(examples, answers)
        return [RATINGS[metric](answer, e.query.answers) for e, answer in zip(examples, answers, strict=True)]

    def evaluate(self, model: Any, examples: Sequence[Example], progress: bool = True) -> dict[str, float]:
        """The task's metrics."""
        return self.metrics(self.predict(model, examples, progress))

    def metrics(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The metrics of predictions, the task's own first."""
        if predictions[0].metrics is not None:
            return {name: mean([(p.metrics or {})[name] for p in predictions]) for name in predictions[0].metrics}
        if self.task.kind == "chat":
            return {"loss": -mean([p.scores[0] for p in predictions if p.scores])}
        found = {"accuracy": accuracy(predictions), "loss": candidate_loss(predictions)}
        return dict(sorted(found.items(), key=lambda item: item[0] != self.metric))

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


def _of_one_length(examples: Sequence[Example]) -> list[list[int]]:
    """The examples' numbers, those with contexts of one length together."""
    groups: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        groups.setdefault(len(example.context), []).append(i)
    return list(groups.values())
