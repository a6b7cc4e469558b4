"""What becomes of each of the Trainer's settings under MeZO: it works, it does nothing here, or it is refused.

One table, without transformers, so that flags are answered at once; docs/training-arguments.md is written from it, and
a test holds it against all fields of the installed `TrainingArguments`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class Field:
    """What becomes of a setting.

    Args:
        says: For one that works, what there is to know; for the others, why not.
        refused: Any value but `only` is an error.
        idle: It does nothing here; a value but `only` is said.
        only: The values that ask for nothing; () for those that are false (None, False, 0, empty).
        with_task: Why it cannot be together with `task`, which has its own batches, losses and metrics; "" if it can.
    """

    says: str = ""
    refused: bool = False
    idle: bool = False
    only: tuple[Any, ...] = ()
    with_task: str = ""

    def asks(self, value: Any) -> bool:
        """Whether a value asks for anything."""
        value = value.value if isinstance(value, Enum) else value
        return value not in self.only if self.only else bool(value)

    @property
    def verdict(self) -> str:
        """In a word."""
        return "refused" if self.refused else "no effect" if self.idle else "works"


WORKS = Field()
METRICS = "a task measures itself, by its own predictions"
ONE = "MeZO trains in one process on one device"
ADAM = "MeZO is the optimiser, without Adam's moments of gradients; its own Adam is update='adam:beta2=0.99'"
OPTIMISER = "MeZO is the optimiser; how its weights move is said by update= (sgd, sign, momentum, adam, ...)"
BACKWARD = "there is no backward pass, so no activations are kept for one"
SHARDED = Field(f"{ONE}; `zerograd plan` says what fits, offloading keeps the weights in main memory", refused=True)
SCRIPTS = Field("for scripts that read it; the Trainer itself does not", idle=True)
NODES = "of several processes or machines, and there is one"
NO_AUTO_BATCH = (
    "it starts the loop again, with a smaller batch, over weights that logged steps have moved, and a resumed run "
    "could not know with which batch: take a smaller per_device_train_batch_size (gradient_accumulation_steps keeps "
    "the batch of a step; `zerograd plan` says what fits)"
)
FIELDS: dict[str, Field] = {
    # length and rate
    "output_dir": Field("the log, the checkpoints and the model"),
    "per_device_train_batch_size": Field("rows of a probe"),
    "num_train_epochs": WORKS,
    "max_steps": WORKS,
    "learning_rate": Field("MeZO's default is 1e-6, whatever the class that is mixed into has"),
    "lr_scheduler_type": Field("MeZO's default is constant"),
    "lr_scheduler_kwargs": Field("refused with a constant rate, which has none"),
    "warmup_steps": Field("refused with a constant rate, which has none: constant_with_warmup has"),
    "weight_decay": Field("decoupled, on tensors of two or more dimensions"),
    "gradient_accumulation_steps": Field("losses are added, which is the larger batch"),
    # the optimiser
    "optim": Field(OPTIMISER, refused=True, only=("adamw_torch_fused", "adamw_torch")),
    "optim_args": Field(OPTIMISER, refused=True),
    "optim_target_modules": Field(f"{OPTIMISER}; what is trained is what has requires_grad", refused=True),
    "adam_beta1": Field(ADAM, refused=True, only=(0.9,)),
    "adam_beta2": Field(ADAM, refused=True, only=(0.999,)),
    "adam_epsilon": Field(ADAM, refused=True, only=(1e-8,)),
    "max_grad_norm": Field("MeZO has no gradient to clip; update='normalised' bounds a step", refused=True),
    # the loss
    "label_smoothing_factor": Field(
        "in the model's own loss",
        with_task="a task's loss compares the candidates of a row, or is a rating; it has no vocabulary to smooth over",
    ),
    "neftune_noise_alpha": Field(
        "its noise is drawn anew in each forward, and would differ between the two sides of a probe", refused=True
    ),
    "average_tokens_across_devices": Field(NODES, idle=True, only=(True,)),
    # numbers and speed
    "bf16": Field("forwards run under autocast; weights of 16 bits are half as large: dtype=torch.bfloat16"),
    "fp16": Field(
        "it scales the loss for backpropagation, which MeZO does not do; load the model in float16 instead "
        "(dtype=torch.float16, --dtype float16)",
        refused=True,
    ),
    "bf16_full_eval": Field(
        "it would turn the trained weights themselves into bfloat16; load the model in bfloat16 instead", refused=True
    ),
    "fp16_full_eval": Field(
        "it would turn the trained weights themselves into float16; load the model in float16 instead", refused=True
    ),
    "tf32": WORKS,
    "activation_checkpointing": Field(BACKWARD, idle=True),
    "activation_checkpointing_kwargs": Field(BACKWARD, idle=True),
    "gradient_checkpointing": Field(BACKWARD, idle=True),
    "gradient_checkpointing_kwargs": Field(BACKWARD, idle=True),
    "torch_compile": Field(
        "noise is added as a forward reads its weights, one operation at a time, and a compiled forward hides these",
        refused=True,
    ),
    "torch_compile_backend": Field("as torch_compile, which it turns on", refused=True),
    "torch_compile_mode": Field("as torch_compile, which it turns on", refused=True),
    "use_liger_kernel": Field(
        "its kernels read weights by their address, where no noise can be added to what is read", refused=True
    ),
    "liger_kernel_config": Field("as use_liger_kernel", refused=True),
    "use_cache": WORKS,
    "torch_empty_cache_steps": WORKS,
    "auto_find_batch_size": Field(NO_AUTO_BATCH, refused=True),
    "use_cpu": WORKS,
    "full_determinism": WORKS,
    # logging
    "logging_strategy": WORKS,
    "logging_steps": WORKS,
    "logging_first_step": WORKS,
    "logging_nan_inf_filter": Field("a step that was skipped is logged as nan"),
    "log_level": WORKS,
    "log_level_replica": Field(NODES, idle=True, only=("warning",)),
    "log_on_each_node": Field(NODES, idle=True, only=(True,)),
    "include_num_input_tokens_seen": Field(
        "yes, no or all", only=("no", False), with_task="a task's batches are packed"
    ),
    "disable_tqdm": Field("no bar, and a line for each interval of logging_steps"),
    "report_to": Field("gets the projected gradient, rate, seconds a step, forward passes and skipped steps, too"),
    "run_name": WORKS,
    "project": Field("of Trackio"),
    "trackio_space_id": Field("of Trackio"),
    "trackio_bucket_id": Field("of Trackio"),
    "trackio_static_space_id": Field("of Trackio"),
    # evaluation
    "eval_strategy": WORKS,
    "eval_steps": WORKS,
    "eval_delay": WORKS,
    "eval_on_start": WORKS,
    "per_device_eval_batch_size": Field("without a task; a task's batches are as large as memory is well used"),
    "prediction_loss_only": Field(with_task=METRICS),
    "eval_do_concat_batches": Field(only=(True,), with_task=METRICS),
    "eval_use_gather_object": Field(NODES, idle=True),
    "eval_accumulation_steps": Field(with_task=METRICS),
    "include_for_metrics": Field(with_task="compute_metrics gets a task's predictions and right answers"),
    "batch_eval_metrics": Field(with_task="compute_metrics gets all of a task's predictions at once"),
    # saving
    "save_strategy": WORKS,
    "save_steps": WORKS,
    "save_total_limit": WORKS,
    "save_only_model": Field(
        "a checkpoint is the log and the Trainer's state, some kB, and resuming needs both; save_full_model says when "
        "the model is saved",
        refused=True,
    ),
    "save_on_each_node": Field(NODES, idle=True),
    "enable_jit_checkpoint": Field("the log has every step in any case"),
    "load_best_model_at_end": Field("replayed from the log; needs the base weights on disk while it runs"),
    "metric_for_best_model": Field("with a task, its metric where none is named"),
    "greater_is_better": WORKS,
    "push_to_hub": WORKS,
    "hub_token": WORKS,
    "hub_private_repo": WORKS,
    "hub_model_id": WORKS,
    "hub_strategy": WORKS,
    "hub_always_push": WORKS,
    "hub_revision": WORKS,
    # going on
    "resume_from_checkpoint": Field(
        "the Trainer does not read it: say train(resume_from_checkpoint=...), or resume=True (--resume)", refused=True
    ),
    "ignore_data_skip": Field("a resumed run then begins with its first rows again"),
    "restore_callback_states_from_checkpoint": WORKS,
    "seed": Field("of the noise, too"),
    "data_seed": WORKS,
    # data
    "accelerator_config": WORKS,
    "dataloader_drop_last": WORKS,
    "dataloader_num_workers": WORKS,
    "dataloader_pin_memory": WORKS,
    "dataloader_persistent_workers": WORKS,
    "dataloader_prefetch_factor": WORKS,
    "dataloader_multiprocessing_context": WORKS,
    "dataloader_in_order": WORKS,
    "remove_unused_columns": Field("a task sets it to False, because it reads columns that a model does not know"),
    "label_names": Field(with_task="a task knows its labels"),
    "train_sampling_strategy": Field("with a task, the lengths are those of its examples"),
    "length_column_name": Field(only=("length",), with_task="the lengths are those of the task's examples"),
    # several devices
    "parallelism_config": SHARDED,
    "fsdp": SHARDED,
    "fsdp_config": SHARDED,
    "deepspeed": SHARDED,
    "ddp_find_unused_parameters": Field(NODES, idle=True),
    "ddp_bucket_cap_mb": Field(NODES, idle=True),
    "ddp_broadcast_buffers": Field(NODES, idle=True),
    "ddp_static_graph": Field(NODES, idle=True),
    "ddp_backend": Field(NODES, idle=True),
    "ddp_timeout": Field(NODES, idle=True, only=(1800,)),
    "local_rank": Field(NODES, idle=True, only=(-1, 0)),
    # the rest
    "debug": WORKS,
    "skip_memory_metrics": WORKS,
    "do_train": SCRIPTS,
    "do_eval": SCRIPTS,
    "do_predict": SCRIPTS,
    # of TRL's classes
    "activation_offloading": Field(BACKWARD, idle=True),
}


def check_unused(values: Mapping[str, Any], task: bool = False) -> None:
    """ValueError for the first setting that would not be done: with what was given, and the reason.

    Args:
        values: Settings by name.
        task: Whether they are for a run with a task.
    """
    for name, field in FIELDS.items():
        why = field.says if field.refused else field.with_task if task else ""
        if why and name in values and field.asks(values[name]):
            place = " with a task" if not field.refused else ""
            raise ValueError(f"{name}={shown(values[name])} cannot be used{place}: {why}")


def check_schedule(values: Mapping[str, Any]) -> None:
    """ValueError for settings of a schedule, all given, that the constant rate would drop without a word."""
    if shown(values.get("lr_scheduler_type")) != "'constant'":
        return
    for name in ("warmup_steps", "lr_scheduler_kwargs"):
        if values.get(name):
            raise ValueError(
                f"{name}={shown(values[name])} does nothing with lr_scheduler_type='constant': take another, such as "
                "'constant_with_warmup'"
            )


def idle_settings(values: Mapping[str, Any]) -> dict[str, str]:
    """Those of these settings that do nothing here, as they were given, each with its reason."""
    return {
        f"{name}={shown(values[name])}": field.says
        for name, field in FIELDS.items()
        if field.idle and name in values and field.asks(values[name])
    }


def shown(value: Any) -> str:
    """A value as the user wrote it."""
    return repr(value.value if isinstance(value, Enum) else value)
