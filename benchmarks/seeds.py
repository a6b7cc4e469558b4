"""Train over several seeds with the command line, and print mean and standard deviation before and after.

Finished runs are not run again. Everything behind `--` goes to `zerograd train`.

    python benchmarks/seeds.py --out runs/minilm --seeds 5 -- --model MODEL --task sst2 --data ../shared/data/sst2 \
        --learning_rate 1e-5 --per_device_train_batch_size 16 --max_steps 2000 --eval_steps 0.1 --save_steps 0.1
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path

from zerograd.cli.main import main as zerograd


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("train", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    flags = [flag for flag in args.train if flag != "--"]
    results = []
    for seed in range(args.seeds):
        folder = args.out / f"seed{seed}"
        if not (folder / "results.json").exists():
            status = zerograd(["train", *flags, "--output_dir", str(folder), "--seed", str(seed), "--resume", "true"])
            if status:
                sys.exit(status)
        results.append(json.loads((folder / "results.json").read_text()))
    print("zerograd train", shlex.join(flags))
    print("\n| | mean | standard deviation | by seed |\n|---|---|---|---|")
    for when in ("before", "after"):
        for key, unit in (("accuracy", 100), ("loss", 1)):
            values = [r[when][key] * unit for r in results]
            row = " ".join(f"{v:.2f}" for v in values)
            print(f"| {key} {when} | {statistics.mean(values):.2f} | {statistics.stdev(values):.2f} | {row} |")
    seconds = [r["seconds"] for r in results]
    print(f"| seconds of training | {statistics.mean(seconds):.0f} | {statistics.stdev(seconds):.0f} | |")


if __name__ == "__main__":
    main()
