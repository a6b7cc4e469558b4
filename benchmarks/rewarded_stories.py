"""Evolution strategies on a reward: little stories of a real decoder (stories260K), before and after.

python benchmarks/rewarded_stories.py [--shared ../shared] [--seeds 5] [--steps 100] [--set learning_rate=0.03 ...]

Prints the reward of held-out prompts before and after for each seed, ten stories of each, and the seconds of a step in
one batch and of the same step by snapshot probing.
"""

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))
from story_reward import judged

from zerograd import MeZOConfig, MeZOTrainer, Task, load_model
from zerograd.evaluation.bound_task import BoundTask
from zerograd.training.presets import get_preset

HEROES = ("Lily", "Tim", "Mia", "Ben", "Anna", "Tom", "Sara", "Max", "Lucy", "Sam", "Amy", "Jack")
FRIENDS = ("dog", "cat", "bird", "frog", "bear", "fish", "duck", "rabbit", "mouse", "cow", "fox", "pig")
TASK = Task("story", "One day, {hero} met a {friend}.", max_new_tokens=64, objective="story_reward:rating")


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Prompts to train on, and 32 others."""
    pairs = [{"hero": h, "friend": f} for h, f in itertools.product(HEROES, FRIENDS)]
    random.Random(0).shuffle(pairs)
    return pairs[32:], pairs[:32]


def trained(folder: Path, model_folder: Path, seed: int, steps: int, settings: dict[str, Any]) -> Any:
    """A trainer with everything set."""
    model, tokenizer = load_model(str(model_folder), "float32")
    config = MeZOConfig(
        str(folder), seed=seed, max_steps=steps, save_strategy="no", eval_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, save_full_model="never", logging_strategy="no", **settings,
    )  # fmt: skip
    return MeZOTrainer(model, config, task=TASK, processing_class=tokenizer, train_dataset=rows()[0])


def stories(trainer: Any) -> tuple[dict[str, float], list[str]]:
    """Mean ratings of greedy stories for the held-out prompts, and the stories."""
    bound: BoundTask = trainer.bound_task
    held_out = rows()[1]
    found = [str(p.predicted) for p in bound.predict(trainer.model, bound.encode(held_out), progress=False)]
    parts = [judged(text, row["hero"], row["friend"]) for text, row in zip(found, held_out, strict=True)]
    means = {name: statistics.fmean(p[name] for p in parts) for name in parts[0]}
    return {"reward": sum(means.values()), **means}, [
        f"One day, {row['hero']} met a {row['friend']}. {text}" for text, row in zip(found, held_out, strict=True)
    ]


class Seconds(TrainerCallback):
    """How long each step took."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stops it."""
        self.steps.append(time.perf_counter() - self._start)


def timed(model_folder: Path, settings: dict[str, Any], steps: int = 6) -> float:
    """Median seconds of a step behind the first."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = trained(Path(folder) / "run", model_folder, 0, steps, settings), Seconds()
        trainer.add_callback(clock)
        trainer.train()
    return statistics.median(clock.steps[1:])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings beside the preset's")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the model is small, and threads would wait for one another
    model_folder = args.shared / "models" / "stories260K"
    chosen = {"per_device_train_batch_size": 4}
    settings = get_preset("es").arguments() | chosen | dict(_setting(text) for text in args.set)
    settings.pop("max_steps", None)
    print(" ".join(f"{name}={value}" for name, value in settings.items()))
    print("\n| seed | | reward | ended | named | fresh | minutes |\n|---|---|---|---|---|---|---|", flush=True)
    shown: list[str] = []
    gains = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trained(Path(folder) / "run", model_folder, seed, args.steps, settings)
            before, first = stories(trainer)
            start = time.perf_counter()
            trainer.train()
            minutes = (time.perf_counter() - start) / 60
            after, last = stories(trainer)
        for name, means, spent in (("before", before, ""), ("after", after, f"{minutes:.1f}")):
            print(f"| {seed} | {name} | {' | '.join(f'{v:.2f}' for v in means.values())} | {spent} |", flush=True)
        gains.append(after["reward"] - before["reward"])
        if not seed:
            shown = [f"\nTen stories {when}:\n" for when in ("before", "after")]
            shown = [shown[0], *(f"- {s}" for s in first[:10]), shown[1], *(f"- {s}" for s in last[:10])]
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    print(f"\nGain in reward over {len(gains)} seeds: {statistics.fmean(gains):.2f} (standard deviation {spread:.2f})")
    if len(gains) > 1:
        compare_seconds(model_folder, settings)
    print("\n".join(shown))


def compare_seconds(model_folder: Path, settings: dict[str, Any]) -> None:
    """Print how long a step takes in one batch, and in turn."""
    together = timed(model_folder, settings | {"probing": "population"})
    in_turn = timed(model_folder, settings | {"probing": "snapshot"})
    print(f"\nA step in one batch {together:.2f} s, by snapshot probing {in_turn:.2f} s: {in_turn / together:.1f} x")


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, int(value)
    except ValueError:
        pass
    try:
        return name, float(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    main()
