"""The Trainer: a task of the paper, its metric, the best checkpoint, and a log instead of copies of the model."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from zerograd import MeZOConfig, MeZOTrainer, SplitSizes, demo_folder, get_task, load_splits

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example-trainer"
name = demo_folder("model")
tokenizer = AutoTokenizer.from_pretrained(name)
splits = load_splits(get_task("sst2"), demo_folder("data"), SplitSizes(train=320, dev=100, test=200))
trainer = MeZOTrainer(
    AutoModelForCausalLM.from_pretrained(name),
    MeZOConfig(
        folder,
        learning_rate=5e-5,
        max_steps=60,
        eval_strategy="steps",
        eval_steps=20,
        save_steps=20,
        load_best_model_at_end=True,
        report_to="none",
    ),
    task="sst2",
    processing_class=tokenizer,
    train_dataset=splits.train,
    eval_dataset=splits.dev,
)
trainer.train()
print(trainer.evaluate(splits.test))
