"""Share a run as a log: whoever has the base model rebuilds the very same weights from some kilobytes."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zerograd

log = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-replay") / "run.zlog"
log.parent.mkdir(parents=True, exist_ok=True)
name = zerograd.demo_folder("model")
batch = AutoTokenizer.from_pretrained(name)(["It was great"], return_tensors="pt")

mine = AutoModelForCausalLM.from_pretrained(name).eval()
optimizer = zerograd.MeZO(mine.named_parameters(), lr=1e-4, log=log)
for _ in range(50):
    optimizer.step(lambda: mine(**batch, labels=batch["input_ids"]).loss)

theirs = AutoModelForCausalLM.from_pretrained(name)  # on another machine, with nothing but the log
read = zerograd.replay(log, theirs)
same = all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
size, weights = log.stat().st_size, sum(p.nbytes for p in mine.parameters())
print(f"{len(read.steps)} steps in {size} bytes, weights of {weights} bytes; bit for bit the same: {same}")
