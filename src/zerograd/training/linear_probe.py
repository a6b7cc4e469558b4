"""Linear probing: a logistic regression on the model's last hidden states, written into the head's label rows.

Section 3 and Appendices D.4 and E.1 (LP-MeZO) of arXiv 2305.17333. In the head it predicts through the same forward
and evaluation as every other method, and training can go on from it.
"""

import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from tqdm.auto import tqdm

from zerograd.core.device import compute_device
from zerograd.evaluation.bound_task import BoundTask
from zerograd.evaluation.evaluate import batches
from zerograd.evaluation.logprobs import read_states
from zerograd.evaluation.packing import pack, stack
from zerograd.tasks.example import Example
from zerograd.tasks.prompts import PromptError
from zerograd.training.adapters import untie

NO_PROBE = (
    "a linear probe is written into the head's rows of the label words; an encoder-decoder's head shares them with its "
    "embeddings or adds a bias of its own behind them: train lora or full instead"
)
FOLDS = 5
STRENGTHS = 10  # values of the regularisation among which cross-validation chooses, 1e-4 to 1e4
# what the paper's early stopping changes in the solver
FULL, EARLY = {"max_iter": 5000, "tol": 1e-4}, {"max_iter": 1000, "tol": 1e-2}


def linear_probe(
    model: Any, task: BoundTask, examples: list[Example], *, early_stopping: bool = False, progress: bool = True
) -> int:
    """Fit a linear classifier of the label words on frozen features and put it into the model's head.

    The head gets weights of its own if it shares the input embedding's; the other words' rows stay.

    Args:
        model: The model, in eval mode.
        task: One with label words of one token each, bound to the model.
        examples: The training examples.
        early_stopping: The paper's, for LP-MeZO: fewer iterations, a looser tolerance.
        progress: Show a bar.

    Returns:
        How many forward passes it took.

    Raises:
        PromptError: An encoder-decoder model; the task has no labels of one token, or the rows lack a class.
    """
    if task.prompter.decoder_start is not None:
        raise PromptError(NO_PROBE)
    label_ids = task.prompter.label_ids
    if label_ids is None:
        raise PromptError(
            f"linear probing needs label words of one token each, which task {task.task.name!r} does not have with "
            "this tokenizer"
        )
    states, forwards = hidden_states(model, task, examples, progress)
    right = np.array([e.query.correct[0] for e in examples])
    counts = Counter(right.tolist())
    missing = [task.task.labels[i] for i in range(len(label_ids)) if not counts[i]]
    if missing:
        raise PromptError(f"linear probing needs training rows of every class; there is none of {missing[0]!r}")
    untie(model)
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    weights, intercepts = _fit(states, right, bias is not None, EARLY if early_stopping else FULL)
    with torch.no_grad():
        head.weight[label_ids] = torch.from_numpy(weights).to(head.weight)
        if bias is not None:
            bias[label_ids] = torch.from_numpy(intercepts).to(bias)
    return forwards


@torch.no_grad()
def hidden_states(
    model: Any, task: BoundTask, examples: list[Example], progress: bool = True
) -> tuple[np.ndarray, int]:
    """What the head reads where each answer is written (the last position, or the mask), and the forwards taken.

    Returns:
        (examples, hidden size) float32, in the order of the examples.
    """
    device = compute_device(model)
    found: dict[int, np.ndarray] = {}
    forwards = 0
    with tqdm(total=len(examples), desc="features", unit="ex", disable=not progress, leave=False) as bar:
        for chosen in batches([pack(e) for e in examples], 1):
            states = read_states(model, stack(chosen, task.pad_token_id).to(device)).cpu().numpy()
            found.update((id(packed.example), row) for packed, row in zip(chosen, states, strict=True))
            forwards += 1
            bar.update(len(chosen))
    return np.stack([found[id(e)] for e in examples]), forwards


def _fit(
    states: np.ndarray, right: np.ndarray, intercept: bool, limits: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """(classes, hidden size) weights and (classes,) intercepts, the strength of the penalty cross-validated."""
    folds = min(FOLDS, min(Counter(right.tolist()).values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limits are the paper's
        warnings.simplefilter("ignore", FutureWarning)
        if folds < 2:
            fitted: Any = LogisticRegression(fit_intercept=intercept, **limits)
        else:
            fitted = LogisticRegressionCV(Cs=STRENGTHS, cv=folds, scoring="accuracy", fit_intercept=intercept, **limits)
        fitted.fit(states, right)
    weights, intercepts = fitted.coef_, np.broadcast_to(fitted.intercept_, len(fitted.coef_))
    if len(weights) == 1:  # two classes have one row: the logits' difference
        weights, intercepts = np.concatenate((-weights, weights)) / 2, np.concatenate((-intercepts, intercepts)) / 2
    return weights, np.ascontiguousarray(intercepts)
