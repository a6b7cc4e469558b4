"""What a user is told of wrong inputs: each command is run, and its message, status and seconds become a table.

    python benchmarks/wrong_inputs.py [--out benchmarks/results/wrong_inputs.md]

The cases stand here because the table is for people; `tests/cli/test_wrong_inputs.py` holds the program to them.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from zerograd.training.models import demo_folder

OWN = "--prompt '{text} It was' --labels neg=terrible,pos=great --max_steps 2 --use_cpu"
WORDS = "--prompt '{text} It was' --labels terrible,great --max_steps 2 --use_cpu"


class Case(NamedTuple):
    """A wrong input.

    Args:
        line: The command, in the folder of `make_files`.
        status: Its exit status: 2 for wrong usage, 1 for an error that had to be looked for.
        words: What its message must hold.
    """

    line: str
    status: int
    words: str


CASES = [
    # flags
    Case("trian", 2, "did you mean 'train'"),
    Case("train --learning_rat 1e-6", 2, "did you mean --learning_rate"),
    Case("train --max_steps ten", 2, "--max_steps must be a whole number, got 'ten'"),
    Case("train --max_steps 0", 2, "--max_steps must be at least 1"),
    Case("train --max_steps", 2, "--max_steps needs a value"),
    Case("train --learning_rate fast", 2, "--learning_rate must be a number, got 'fast'"),
    Case("train --eps 0", 2, "eps must be positive"),
    Case("train --k 0", 2, "--k must be at least 1"),
    Case("train --resume maybe", 2, "true or false, got 'maybe'"),
    Case("train --labels good bad", 2, "what is 'bad'?"),
    Case("train --lr_scheduler_kwargs {", 2, "must be JSON"),
    Case("train --dtype int8", 2, "unknown dtype 'int8'"),
    Case("train --quantize 3bit", 2, "unknown quantize '3bit'"),
    Case("train --tune lorra", 2, "did you mean 'lora'"),
    Case("train --estimator spsb", 2, "unknown estimator 'spsb'"),
    Case("train --probing stream", 2, "unknown probing 'stream'"),
    Case("train --preset opt-lorra", 2, "did you mean 'opt-lora'"),
    Case("train --task sst", 2, "did you mean 'sst2'"),
    Case("train --report_to tensorbord", 2, "did you mean 'tensorboard'"),
    Case("compare --methods mezo,mezzo", 2, "unknown methods 'mezzo'"),
    # what does nothing without backpropagation
    Case("train --optim adafactor", 2, "MeZO is the optimiser"),
    Case("train --adam_beta1 0.8", 2, "cannot be used"),
    Case("train --label_smoothing_factor 0.1", 2, "cannot be used with a task"),
    Case("train --neftune_noise_alpha 5", 2, "would differ between the two sides"),
    Case("train --torch_compile", 2, "cannot be used"),
    Case("train --fp16", 2, "scales the loss for backpropagation"),
    Case("train --max_grad_norm 1", 2, "no gradient to clip"),
    Case("train --auto_find_batch_size", 2, "cannot be used"),
    Case("train --warmup_steps 10 --lr_scheduler_type constant", 2, "does nothing with lr_scheduler_type='constant'"),
    Case("train --deepspeed ds.json", 2, "cannot be used"),
    # flags that contradict each other, or need another
    Case("train --task sst2 --prompt '{sentence} It'", 2, "brings its own prompt"),
    Case("train --k 4 --num_train 10", 2, "both say how many"),
    Case("train --lora_r 4", 2, "--tune lora"),
    Case("train --distribution sphere --rank 2", 1, "low rank are gaussian or rademacher"),
    Case("train --resume --start_over", 2, "say one of them"),
    Case("train --offload --quantize 4bit", 2, "not both"),
    Case("train --prompt '{text} It was'", 2, "give them with --data"),
    Case("train --tune prefix --num_virtual_tokens 600", 1, "leaves no room for text"),
    Case("train --tune_layers 0-9", 1, "the model has layers 0 to 2"),
    Case("eval --step 3", 1, "give it with --log"),
    # files and folders that are not there, or hold something else
    Case("train --data revews.csv", 2, "did you mean reviews.csv"),
    Case("train --model /no/such/model", 2, "no file or folder"),
    Case("train --config none.yaml", 2, "there is no such file"),
    Case("train --config broken.yaml", 2, "broken.yaml"),
    Case("train --config wrong.yaml", 2, "max_steps must be a whole number, got 'ten'"),
    Case("train --config odd.yaml", 2, "did you mean"),
    Case("eval --log none.zlog", 2, "there is no step log"),
    Case("eval --log reviews.csv", 1, "not a zerograd step log"),
    Case("eval --predictions nowhere/out.jsonl --num_test 4", 1, "does not exist"),
    Case("train --output_dir reviews.csv", 1, "is a file"),
    Case("train --resume --output_dir nothing", 1, "there is no run in nothing"),
    Case("predict --data reviews.csv --model notok", 1, "without its tokenizer"),
    Case("eval --model notok --task sst2", 1, "without its tokenizer"),
    Case("eval --model cutoff --data sst2 --task sst2", 1, "damaged or cut off"),
    Case("eval --model empty --task sst2", 1, "does not hold a usable model"),
    Case("eval --model garbled --task sst2", 1, "not a valid JSON file"),
    Case("plan --model ./nowhere", 2, "there is no file or folder"),
    Case("plan --model opt-1.3b --gpu much", 1, "is no amount of memory"),
    Case("report empty", 1, "empty"),
    # rows of one's own
    Case(f"train --data empty.csv {OWN}", 1, "is empty"),
    Case(f"train --data header.csv {OWN}", 1, "has no rows, only the names text, label"),
    Case(f"train --data twice.csv {OWN}", 1, "two columns 'text'"),
    Case(f"train --data headless.csv {OWN}", 1, "no column 'text'"),
    Case(f"train --data wide.csv {OWN}", 1, "has 3 columns, the first line 2"),
    Case(f"train --data quote.csv {OWN}", 1, "opens a quote that is never closed"),
    Case(f"train --data latin.csv {OWN}", 1, "--encoding cp1252"),
    Case(f"train --data latin.csv --encoding utf-33 {OWN}", 1, "utf-33"),
    Case(f"train --data broken.jsonl {OWN}", 1, "line 2 is no JSON"),
    Case(f"train --data table.xlsx {OWN}", 1, "is none of .jsonl"),
    Case(f"train --data null.jsonl {OWN}", 1, "has no text in column 'text'"),
    Case(f"train --data odd.csv {OWN}", 1, "has label 'meh'"),
    Case(f"train --data reviews.csv {WORDS}", 1, "--labels neg=WORD,pos=WORD"),
    Case(f"train --data reviews.csv --label_column kind {OWN}", 1, "no column 'kind'"),
    Case(f"train --data one_class.csv {OWN}", 1, "terrible"),
    Case(f"train --data two.csv --num_train 30 --num_test 11 {OWN}", 1, "ask for fewer"),
    Case(f"train --data two.csv --k 30 {OWN}", 1, "give k="),
    Case("train --data reviews.csv", 1, "for data of your own, give --prompt"),
    Case("train --data reviews.csv --prompt '{text} It was'", 1, "nothing says what a right answer is"),
    Case("train --data reviews.csv --prompt '{txt} It was' --labels a,b", 1, "no column 'txt'"),
    Case("train --data reviews.csv --prompt '{text} [MASK]' --labels neg=a,pos=b", 1, "mask"),
    Case("train --data reviews.csv --prompt '{text} It was' --labels a,pos=b", 1, "write all of them in one way"),
    Case("train --data reviews.csv --prompt '{text}' --objective rewards:score", 1, "cannot load the reward"),
    Case("predict --data reviews.csv --model nowhere_at_all", 1, "nowhere_at_all"),
]


def make_files(folder: Path) -> None:
    """Write the files that the cases name."""
    good = [f"review {i},{('neg', 'pos')[i % 2]}" for i in range(40)]

    def table(name: str, *lines: str, encoding: str = "utf-8") -> None:
        (folder / name).write_bytes(("\n".join(lines) + "\n").encode(encoding))

    table("reviews.csv", "text,label", *good)
    table("two.csv", "text,label", *good)
    (folder / "empty.csv").touch()
    table("header.csv", "text,label")
    table("twice.csv", "text,text", *good)
    table("headless.csv", *good)
    table("wide.csv", "text,label", *good, "a,b,neg")
    table("quote.csv", "text,label", *good, '"never closed,neg', "more,pos")
    table("latin.csv", "text,label", *good, "café,neg", encoding="cp1252")
    table("odd.csv", "text,label", *good, "so so,meh")
    table("one_class.csv", "text,label", *(f"review {i},neg" for i in range(40)))
    table("broken.jsonl", json.dumps({"text": "a", "label": "neg"}), '{"text": "b", ')
    table("null.jsonl", json.dumps({"text": "a", "label": "neg"}), json.dumps({"text": None, "label": "pos"}))
    (folder / "table.xlsx").write_bytes(b"PK")
    (folder / "broken.yaml").write_text("max_steps: [1\n")
    (folder / "wrong.yaml").write_text("max_steps: ten\n")
    (folder / "odd.yaml").write_text("max_step: 10\n")
    (folder / "ds.json").write_text("{}")
    (folder / "empty").mkdir()
    shutil.copytree(demo_folder("data"), folder / "sst2")
    for name in ("notok", "cutoff", "garbled"):
        shutil.copytree(demo_folder("model"), folder / name)
    for path in (folder / "notok").glob("tokenizer*"):
        path.unlink()
    weights = folder / "cutoff" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "garbled" / "config.json").write_text('{"model_type": ')


def main() -> None:
    """Run all cases, each in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    rows, unlike = [], 0
    with tempfile.TemporaryDirectory() as place:
        make_files(Path(place))
        for case in CASES:
            before = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "zerograd.cli.main", *shlex.split(case.line)], cwd=place, text=True,
                capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            seconds = time.perf_counter() - before
            message = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            shown = " / ".join(m for m in message if "--traceback shows" not in m).replace("|", "\\|")
            right = done.returncode == case.status and case.words in done.stderr + done.stdout
            clear = right and "Traceback" not in done.stderr
            unlike += not clear
            rows.append(
                f"| `{case.line}` | {shown[:300]} | {done.returncode} | {seconds:.1f} |{'' if clear else ' <- unlike'}"
            )
            print(rows[-1], flush=True)
    head = "| input | message | status | seconds |\n|---|---|---|---|\n"
    foot = f"\n{len(CASES)} inputs, {unlike} answered otherwise than they should be.\n"
    if out is not None:
        out.write_text(head + "\n".join(rows) + "\n" + foot)
    print(foot)


if __name__ == "__main__":
    main()
