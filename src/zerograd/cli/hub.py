"""The hub: a run is pushed whole, when it is done, with its log, its start, its settings and its card."""

from pathlib import Path

from huggingface_hub import HfApi
from transformers import TrainingArguments

from zerograd.cli.report import command_line
from zerograd.training.checkpoints import EARLIER
from zerograd.training.models import first_line
from zerograd.training.run_folder import BASE_NAME

LEFT_OUT = ["_*", ".*", "checkpoint-*", f"{EARLIER}-*", BASE_NAME, "training_args.bin"]


def check_hub(config: TrainingArguments) -> None:
    """ValueError where a run is to be pushed and the hub does not know the user, before anything is loaded."""
    if not config.push_to_hub:
        return
    try:
        HfApi(token=config.hub_token).whoami()
    except Exception as error:  # of the connection, of the token and of the hub: a dozen unrelated types
        raise ValueError(
            f"cannot push to the hub: {first_line(error).rstrip('.')}. Log in with `hf auth login`, or leave out "
            "--push_to_hub"
        ) from error


def push(folder: Path, repo: str, config: TrainingArguments) -> None:
    """Upload a run's folder and say where it is.

    Args:
        folder: The output folder.
        repo: Name of the repository, which is there.
        config: Its settings for the hub.

    Raises:
        OSError: It could not be pushed; the folder is whole.
    """
    try:
        done = HfApi(token=config.hub_token).upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"zerograd: {folder.name}", ignore_patterns=LEFT_OUT,
            revision=config.hub_revision,
        )  # fmt: skip
    except Exception as error:  # as above
        again = command_line("upload", repo, folder).partition(" ")[2]
        raise OSError(
            f"the run is whole in {folder}, but could not be pushed: {first_line(error).rstrip('.')}. Push it "
            f"with: hf {again}"
        ) from error
    print(f"Pushed: {done.commit_url}")
