"""What every command loads, and the table of right and predicted classes."""

import numpy as np

from zerograd.cli.arguments import DataArguments
from zerograd.cli.report import confusion
from zerograd.cli.run import set_up
from zerograd.evaluation.evaluate import Prediction


def test_demonstrations_are_training_rows() -> None:
    setup = set_up(DataArguments(num_train=3, num_dev=2, num_test=4), None, 7, demos=2, progress=False)
    shown = [setup.bound.prompter.shown(example.row) for example in setup.train[:2]]
    for example in setup.test:
        text = setup.tokenizer.decode(example.context, skip_special_tokens=True)
        assert text.startswith("\n\n".join([*shown, example.row["sentence"].strip()]))
    longer = set_up(DataArguments(num_train=3, num_dev=2, num_test=4), None, 7, demos=9, progress=False)
    assert any("there are 3 training rows, all shown" in note for note in longer.notes)


def test_a_row_of_the_confusion_is_a_right_class() -> None:
    predictions = [Prediction(0, [0.0, 1.0], 1, 0), Prediction(1, [0.0, 1.0], 1, 0), Prediction(2, [1.0, 0.0], 0, 0)]
    assert np.array_equal(confusion(predictions, 2), [[1, 2], [0, 0]])
