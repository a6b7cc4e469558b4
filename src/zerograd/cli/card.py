"""The model card: what was trained, on what, by which command, what came of it, and how to get the same again."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from zerograd.cli.again import PATHS, RUN, typed
from zerograd.cli.output import write_whole
from zerograd.cli.pictures import shown
from zerograd.cli.run import START, Setup
from zerograd.training.checkpoints import LOG_NAME
from zerograd.training.models import ADAPTER_CONFIG

CARD = "README.md"
TASKS = {"classification": "text-classification", "choice": "multiple-choice"}  # the hub's names; else text-generation
PIPELINES = {"masked": "fill-mask", "encoder-decoder": "text2text-generation"}
SHOWN = ("estimator", "update", "num_probes", "eps", "learning_rate", "lr_scheduler_type", "weight_decay", "seed")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def write_card(folder: Path, setup: Setup, results: Mapping[str, Any]) -> None:
    """Write `README.md` into an output folder, in the hub's form. OSError if it cannot be written.

    Args:
        folder: The output folder, with its `run.yaml`.
        setup: What was trained.
        results: What `results.json` holds.
    """
    metric, data = results["metric"], _data(results)
    base = results["model"] if _on_hub(results["config"]["model"]) else None
    found = EvalResult(
        task_type=TASKS.get(setup.task.kind, "text-generation"), dataset_type=data, dataset_name=data,
        metric_type=metric, metric_value=results["after"][metric],
    )  # fmt: skip
    header = ModelCardData(
        base_model=base, library_name="peft" if (folder / ADAPTER_CONFIG).is_file() else "transformers",
        tags=["zerograd", "mezo"], datasets=_datasets(setup, results), model_name=folder.absolute().name,
        pipeline_tag=PIPELINES.get(results["method"]["model_kind"], "text-generation"), eval_results=[found],
    )  # fmt: skip
    card = ModelCard(f"---\n{header.to_yaml()}\n---\n\n{_body(folder, setup, results)}")
    write_whole(folder / CARD, str(card).encode())


def _body(folder: Path, setup: Setup, results: Mapping[str, Any]) -> str:
    metric, method, config = results["metric"], results["method"], results["config"]
    base = _name(config["model"]) or "zerograd's built-in demo model"
    steps, chosen = results["steps"], results["selected_step"]
    model = "" if config["model"] is None else f" --model {_name(config['model'])}"
    settings = {
        "data": f"{_data(results)}: {len(setup.train)} rows for training, {len(setup.dev)} to choose the step, "
        f"{len(setup.test)} for the test",
        **_asked(setup),
        "tuned": f"{method['tune']}, {method['trainable_parameters']:,} parameters",
        "steps": f"{steps}; the weights are those of step {chosen}"
        + ("" if chosen == steps else ", the best on the dev rows"),
        "rows a step": config["per_device_train_batch_size"] * config["gradient_accumulation_steps"],
        **{name: config[name] for name in SHOWN},
        "took": f"{results['seconds']:.0f} s, {results['peak_memory_bytes'] / 1e9:.2f} GB at most",
    }
    figures = [
        f"| {name} | {shown(name, results['before'][name])} | {shown(name, value)} |"
        for name, value in results["after"].items()
    ]
    return "\n".join([
        f"# {folder.absolute().name}\n",
        f"`{base}`, fine-tuned with forward passes only ([MeZO](https://arxiv.org/abs/2305.17333)) by zerograd.\n",
        f"| on {len(setup.test)} test rows | before | after |\n|---|---|---|", *figures,
        f"\n![{metric} and loss by step](curve.png)\n" if (folder / "curve.png").is_file() else "",
        "## How it was trained\n", "| | |\n|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in settings.items()),
        f"\n```bash\n{_command(folder)}\n```\n",
        "## Using it\n",
        "```bash\nzerograd predict --model . --data NEW.csv\n```\n",
        "## The same again\n",
        f"`{LOG_NAME}` holds every step, 24 bytes a probe: with the base weights"
        + (f" and the adapter in `{START}`" if (folder / START).is_dir() else "")
        + " it gives these weights, bit for bit. "
        f"`{RUN}` holds the settings (its paths are those of the machine it was trained on).\n",
        "```bash",
        f"zerograd replay{model} --log {LOG_NAME} --output_dir rebuilt",
        f"zerograd train --config {RUN} --output_dir again\n```\n",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in results["versions"].items()) + ".\n",
    ])  # fmt: skip


def _asked(setup: Setup) -> dict[str, Any]:
    """What a row is asked."""
    task = setup.task
    prompt = task.prompt if isinstance(task.prompt, str) else None
    asked = {
        "task": task.name,
        "prompt": prompt and f"`{prompt}`",
        "labels": ", ".join(task.labels),
        "objective": setup.bound.objective,
    }
    return {name: value for name, value in asked.items() if value}


def _command(folder: Path) -> str:
    """The command that began the run, with names in place of paths."""
    words = [w for k, v in typed(folder).items() for w in (f"--{k}", _word(_name(v) if k in PATHS else v))]
    return shlex.join(["zerograd", "train", *words])


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


def _cell(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("\n", "\\n").replace("|", "\\|")


def _data(results: Mapping[str, Any]) -> str:
    """The data by a name that says nothing of the machine."""
    data = results["config"]["data"]
    return str(Path(data).name) if data else results["task"]


def _name(path: str | None) -> str | None:
    """A model or file by its name: a folder's last part, or its name on the hub."""
    return path if path is None or not Path(path).exists() else Path(path).absolute().name


def _on_hub(model: str | None) -> bool:
    return model is not None and not Path(model).exists() and HUB_ID.fullmatch(model) is not None


def _datasets(setup: Setup, results: Mapping[str, Any]) -> list[str] | None:
    """The data set on the hub, where it is one."""
    config, hub = results["config"], setup.task.hub
    return None if hub is None or config["data"] is not None or config["model"] is None else [hub[0]]
