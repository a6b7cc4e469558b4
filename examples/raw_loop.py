"""A training loop of your own: any torch model, any function that returns a loss."""

import json

from transformers import AutoModelForCausalLM, AutoTokenizer

import zerograd

name = zerograd.demo_folder("model")  # a toy; any model of the hub works the same
model = AutoModelForCausalLM.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
rows = [json.loads(line) for line in open(zerograd.demo_folder("data") / "train.jsonl")][:320]
texts = [f"{row['sentence'].strip()} It was {('terrible', 'great')[row['label']]}" for row in rows]

optimizer = zerograd.MeZO(model.named_parameters(), lr=5e-5, eps=1e-3)
losses = []
for start in range(0, len(texts), 16):
    batch = tokenizer(texts[start : start + 16], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses.append(optimizer.step(lambda batch=batch, labels=labels: model(**batch, labels=labels).loss))
print(f"loss of the first 5 steps {sum(losses[:5]) / 5:.3f}, of the last 5 {sum(losses[-5:]) / 5:.3f}")
