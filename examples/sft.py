"""TRL's supervised fine-tuning, with forward passes only: conversations in, a model and a log of scalars out."""

import sys

from datasets import Dataset

from zerograd import MeZOSFTConfig, MeZOSFTTrainer, load_model

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example-sft"
model, tokenizer = load_model(None, "float32")  # the built-in toy; or AutoModelForCausalLM and AutoTokenizer
tokenizer.chat_template = TEMPLATE  # models that chat bring their own
turns = [
    [{"role": "user", "content": f"the {what} was {how} . It was"}, {"role": "assistant", "content": answer}]
    for how, answer in (("dull", "terrible"), ("witty", "great"))
    for what in ("plot", "film", "cast", "story")
]
trainer = MeZOSFTTrainer(
    model,
    MeZOSFTConfig(
        folder,
        learning_rate=5e-5,
        max_steps=40,
        logging_steps=20,
        eval_strategy="steps",
        eval_steps=20,
        report_to="none",
    ),
    train_dataset=Dataset.from_dict({"messages": turns}),
    eval_dataset=Dataset.from_dict({"messages": turns}),
    processing_class=tokenizer,
)
trainer.train()
print({key: round(value, 4) for key, value in trainer.state.log_history[-2].items() if key.startswith("eval_")})
