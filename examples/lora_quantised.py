"""LoRA over a base in 8 bits: the frozen weights take a byte each, the adapter stays in float32."""

import sys

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from zerograd import MeZOConfig, MeZOTrainer, SplitSizes, demo_folder, get_task, load_splits

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example-lora"
name = demo_folder("model")
base = AutoModelForCausalLM.from_pretrained(name, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
model.print_trainable_parameters()
splits = load_splits(get_task("sst2"), demo_folder("data"), SplitSizes(train=320, dev=100, test=200))
trainer = MeZOTrainer(
    model,
    MeZOConfig(folder, learning_rate=1e-3, eps=1e-2, max_steps=40, report_to="none"),
    task="sst2",
    processing_class=AutoTokenizer.from_pretrained(name),
    train_dataset=splits.train,
)
trainer.train()
print(trainer.evaluate(splits.test))
print(f"the adapter, for PeftModel.from_pretrained: {folder}")
