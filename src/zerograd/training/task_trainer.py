"""`TaskTrainer`: transformers' Trainer, by backpropagation, with a task's data, loss and metric."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import Prediction
from zerograd.evaluation.packing import Batch
from zerograd.tasks.splits import one_class
from zerograd.training.progress import install, shows_bars


class TaskTrainer(Trainer):
    """`transformers.Trainer` on a task; without one, the Trainer as it is.

    Args:
        model: A causal, masked or encoder-decoder language model, or a PeftModel of one.
        args: `TrainingArguments`.
        task: Name of a task, a `Task`, or one bound to the model (`BoundTask`): `train_dataset` and `eval_dataset` are
            then its rows, the loss is the task's objective, and its metric is reported and selects the best
            checkpoint.
        **kwargs: As for `transformers.Trainer`; with `task`, `processing_class` is the tokenizer.
    """

    def __init__(self, model: Any = None, args: Any = None, *, task: Any = None, **kwargs: Any) -> None:
        self.bound_task: BoundTask | None = None
        if task is not None:
            bound = isinstance(task, BoundTask)
            self.bound_task = task if bound else BoundTask.make(task, model, kwargs.get("processing_class"))
            for key in ("train_dataset", "eval_dataset"):
                rows = kwargs.get(key)
                if isinstance(rows, dict):
                    kwargs[key] = {name: self.bound_task.encode(part) for name, part in rows.items()}
                elif rows is not None:
                    kwargs[key] = self.bound_task.encode(rows)
            train = kwargs.get("train_dataset")
            rows = [example.row for example in train] if isinstance(train, list) else []
            only = one_class(self.bound_task.task, rows)
            if only is not None:
                warnings.warn(f"all {len(rows)} training rows are {only!r}: nothing else can be learned", stacklevel=3)
            kwargs.setdefault("data_collator", self.bound_task.collate)
            if args is not None:
                args.remove_unused_columns = False  # the collator reads examples, not the model's columns
                if not getattr(args, "metric_given", False):
                    args.metric_for_best_model = self.bound_task.metric
                    args.greater_is_better = self.bound_task.metric != "loss"
        super().__init__(model, args, **kwargs)
        if task is not None:
            install(self.callback_handler, self.args.disable_tqdm)
            self.loss_is_scaled_for_ga = False  # the task's loss is the mean of each micro-batch

    def _prepare_input(self, data: Any) -> Any:
        """Puts a task's batch onto the device, once a step; the Trainer's own knows tensors and collections only."""
        return data.to(self.args.device) if isinstance(data, Batch) else super()._prepare_input(data)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The task's loss, or the model's own."""
        if self.bound_task is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        return self.bound_task.loss(model, inputs)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The task's metric and loss on examples (encoded or rows), or the Trainer's own evaluation."""
        examples: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if self.bound_task is None or isinstance(examples, dict):  # the Trainer calls back for each of several
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if isinstance(examples, str):
            examples = self.eval_dataset[examples]  # type: ignore[index]
        bars = shows_bars(self.args.disable_tqdm)
        predictions = self.bound_task.predict(self.model, self.bound_task.encode(examples), bars)
        metrics = self._measured(predictions, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Scores (rows, candidates) or answers, right ones and metrics, or the Trainer's own predictions."""
        if self.bound_task is None:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        bars = shows_bars(self.args.disable_tqdm)
        predictions = self.bound_task.predict(self.model, self.bound_task.encode(test_dataset), bars)
        return PredictionOutput(*_arrays(predictions), self._measured(predictions, metric_key_prefix))

    def _measured(self, predictions: list[Prediction], prefix: str) -> dict[str, float]:
        """The task's metrics of predictions, and those of `compute_metrics`."""
        assert self.bound_task is not None
        found = self.bound_task.metrics(predictions)
        if self.compute_metrics is not None:
            found |= self.compute_metrics(EvalPrediction(*_arrays(predictions)))
        return {f"{prefix}_{key}": value for key, value in found.items()}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As the Trainer's; where it goes by length, by that of a task's examples."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.bound_task is None or self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(batch, lengths=[example.length for example in rows])


def _arrays(predictions: Sequence[Prediction]) -> tuple[Any, Any]:
    """Scores (rows, candidates) or answers; and the right ones."""
    made = [p.predicted if p.scores is None else p.scores for p in predictions]
    right = [p.answers if p.scores is None else p.correct for p in predictions]
    return _array(made), _array(right)


def _array(values: Sequence[Any]) -> Any:
    """One array where all values have one shape, else an array of objects."""
    shapes = {np.shape(v) if not isinstance(v, str) else () for v in values}
    if len(shapes) == 1:
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
