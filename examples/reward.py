"""A reward of your own, as in TRL: a function of prompts and completions that returns a number for each."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from zerograd import MeZOConfig, MeZOTrainer, Task, demo_folder


def short_words(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """1 for answers whose words are short, less for longer ones."""
    return [1 / max([len(word) for word in text.split()] or [10]) for text in completions]


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example-reward"
    name = demo_folder("model")
    rows = [{"topic": topic} for topic in ("film", "book", "hotel", "meal")]
    task = Task("brief", "The {topic} was", max_new_tokens=4, objective="reward:short_words")
    trainer = MeZOTrainer(
        AutoModelForCausalLM.from_pretrained(name),
        # directions are of rank 1 here, so both members of a step write their texts in one batch
        MeZOConfig(folder, learning_rate=1e-4, eps=1e-2, max_steps=5, report_to="none"),
        task=task,
        processing_class=AutoTokenizer.from_pretrained(name),
        train_dataset=rows,
    )
    trainer.train()
    print(trainer.evaluate(rows))
