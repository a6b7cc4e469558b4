"""Train on accuracy itself, which has no gradient."""

import sys
from dataclasses import replace

from transformers import AutoModelForCausalLM, AutoTokenizer

from zerograd import MeZOConfig, MeZOTrainer, SplitSizes, demo_folder, get_task, load_splits

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example-accuracy"
name = demo_folder("model")
task = replace(get_task("sst2"), objective="accuracy")
splits = load_splits(task, demo_folder("data"), SplitSizes(train=640, dev=100, test=200))
trainer = MeZOTrainer(
    AutoModelForCausalLM.from_pretrained(name),
    # a larger eps than for a loss: a step too small flips no answer
    MeZOConfig(folder, learning_rate=5e-4, eps=1e-2, max_steps=60, report_to="none", save_full_model="never"),
    task=task,
    processing_class=AutoTokenizer.from_pretrained(name),
    train_dataset=splits.train,
)
print("before:", trainer.evaluate(splits.test))
trainer.train()
print("after: ", trainer.evaluate(splits.test))
