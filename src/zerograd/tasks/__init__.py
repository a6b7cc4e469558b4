"""The tasks by name. A task knows its data and its prompts, and nothing of models."""

from difflib import get_close_matches

from zerograd.tasks.sst2 import SST2
from zerograd.tasks.task import Task as Task

TASKS = {task.name: task for task in (SST2,)}


def get_task(name: str) -> Task:
    """The task of that name. ValueError with the nearest name otherwise."""
    if name not in TASKS:
        near = get_close_matches(name.lower().replace("-", ""), TASKS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown task {name!r}{hint} Known tasks: {', '.join(TASKS)}")
    return TASKS[name]
