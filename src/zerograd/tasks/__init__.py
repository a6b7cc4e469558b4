"""The tasks by name. A task knows its data and its prompts, and nothing of models."""

from difflib import get_close_matches

from zerograd.tasks import paper
from zerograd.tasks.custom import custom_task as custom_task
from zerograd.tasks.task import MESSAGES as MESSAGES
from zerograd.tasks.task import Query as Query
from zerograd.tasks.task import Row as Row
from zerograd.tasks.task import Task as Task
from zerograd.tasks.templates import MASK as MASK
from zerograd.tasks.templates import TaskError as TaskError

TASKS = {task.name: task for task in vars(paper).values() if isinstance(task, Task)}


def get_task(name: str) -> Task:
    """The task of that name. ValueError with the nearest name otherwise."""
    if name not in TASKS:
        typed = name.lower().replace("-", "")
        near = [t for t in TASKS if typed and t.startswith(typed)] or get_close_matches(typed, TASKS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown task {name!r}{hint} Known tasks: {', '.join(TASKS)}")
    return TASKS[name]
