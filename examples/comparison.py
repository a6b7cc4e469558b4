"""Does it pay on these data? Zero-shot, a linear probe, MeZO and backpropagation in one table."""

import sys

from zerograd import CompareArguments, Tuning, compare

if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example-comparison"
    arguments = CompareArguments(
        task="sst2",  # the built-in model and data: toys
        methods=["zero-shot", "lp", "mezo", "ft"],
        seeds="2",
        num_train=320,
        num_dev=100,
        num_test=200,
        set=["mezo.learning_rate=5e-5", "ft.learning_rate=1e-4", "mezo.max_steps=60", "ft.num_train_epochs=1"],
        output_dir=folder,
    )
    compare(arguments, Tuning())
