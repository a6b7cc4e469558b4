"""SST-2: the sentiment of a sentence from a film review (Socher et al. 2013, through GLUE)."""

from zerograd.tasks.task import MASK, Task

SST2 = Task(
    name="sst2",
    hub=("nyu-mll/glue", "sst2"),
    columns=("sentence",),
    label="label",
    words=("terrible", "great"),
    prompt=lambda row: f"{row['sentence'].strip()} It was",
    masked_prompt=lambda row: f"{row['sentence'].strip()} It was{MASK}.",
)
