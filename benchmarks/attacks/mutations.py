"""Files of every kind, damaged at random: a right reading or one clear sentence, and never other weights from a log."""

import json
import random
import shutil
import struct
import traceback
import zlib
from pathlib import Path

import torch
from datasets import Dataset

from attacks.children import TRAIN, command, fork
from attacks.interrupts import Tiny
from zerograd import LogError, MeZO, replay
from zerograd.core.records import PREFIX
from zerograd.training.models import demo_folder

ROWS = 24
KINDS = (
    "log", "log header", "rows.jsonl", "rows.csv", "rows.tsv", "rows.parquet", "chats.jsonl", "model.safetensors",
    "config.json", "tokenizer.json", "tokenizer_config.json", "run.yaml", "results.json", "steps.zlog",
    "trainer_state.json", "adapter_config.json", "compare.json",
)  # fmt: skip
WORDS = (
    b"null", b"-1", b"1e999", b"NaN", b"{}", b"[]", b'""', b"true", b"\x00", b"\xff\xfe", b'"', b",", b"\n", b"{", b"]",
    b"99999999999999999999", "\u2028\U0001f600".encode(),
)  # fmt: skip


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to three random changes of bytes: flipped, cut, doubled, overwritten, or words of formats put in."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(changed) + 1) if changed else 0
        to = min(len(changed), at + draw.choice((1, 2, 4, 16, 200)))
        kind = draw.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            del changed[at:to]
        elif kind == 3:
            changed[at:at] = changed[at:to]
        elif kind == 4:
            changed[at:to] = draw.randbytes(to - at)
        else:
            changed[at : at if kind == 5 else to] = draw.choice(WORDS)
    return bytes(changed)


def mutate_values(data: bytes, draw: random.Random) -> bytes:
    """One value of a JSON text replaced, renamed or left out, so that it still is JSON."""
    values = json.loads(data)
    places: list[tuple[dict | list, str | int]] = []
    todo = [values]
    while todo:
        inner = todo.pop()
        keys = list(inner) if isinstance(inner, dict) else range(len(inner))
        for key in keys:
            places.append((inner, key))
            if isinstance(inner[key], (dict, list)):
                todo.append(inner[key])
    inner, key = draw.choice(places)
    kind = draw.randrange(8)
    if kind == 0:
        del inner[key]
    else:
        junk = (None, -1, 0, 1 << 40, 0.5, "", "x" * 50, [], {}, [None], True, "../..", float("nan"))
        inner[key] = draw.choice(junk)
    return json.dumps(values).encode()


class Mutations:
    """Files that are damaged, and the commands that read them.

    Args:
        folder: Where they are written.
        seed: Of the damage.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self._prepare()

    def _prepare(self) -> None:
        """The whole files: a tiny log, rows in every format, and runs of the demo, made in children."""
        model = Tiny()
        self.base = {name: p.detach().clone() for name, p in model.named_parameters()}
        path = self.folder / "whole.zlog"
        path.unlink(missing_ok=True)
        optimizer = MeZO(model.named_parameters(), lr=1e-2, log=path, n=2)
        self.history = [self.base]
        for step in range(5):
            optimizer.step(lambda step=step: model.loss(step))
            self.history.append({name: p.detach().clone() for name, p in model.named_parameters()})
        optimizer.log.close()
        rows = [{"sentence": f'a "fine", odd film {i}\n', "label": i % 2} for i in range(ROWS)]
        chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
        (self.folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (self.folder / "chats.jsonl").write_text("\n".join([json.dumps(chat)] * ROWS))
        made = self.folder / "made"

        def make() -> int:
            table = Dataset.from_list(rows)
            table.to_csv(self.folder / "rows.csv", index=False)
            table.to_csv(self.folder / "rows.tsv", index=False, sep="\t")
            table.to_parquet(self.folder / "rows.parquet")
            return 0

        shutil.rmtree(made, ignore_errors=True)
        compare = ["compare", "--methods", "zero-shot", "--seeds", "1", "--num_train", "8", "--num_test", "8"]
        children = [
            fork(make, self.folder / "made.txt"),
            command([*TRAIN, "--output_dir", str(made / "full")], self.folder / "full.txt"),
            command([*TRAIN, "--tune", "lora", "--output_dir", str(made / "lora")], self.folder / "lora.txt"),
            command([*compare, "--num_dev", "8", "--output_dir", str(made / "compare")], self.folder / "compare.txt"),
        ]
        for child in children:
            if child.wait() != 0:
                raise RuntimeError(f"a whole file could not be made: {child.said()[-2000:]}")

    def case(self, number: int) -> tuple[str, str]:
        """Damage a file of the next kind and read it."""
        draw = random.Random(f"{self.seed} {number}")
        kind = KINDS[number % len(KINDS)]
        if kind in ("log", "log header"):
            return self._log(kind, draw)
        where = self.folder / "damaged"
        shutil.rmtree(where, ignore_errors=True)
        target, words = self._place(kind, where)
        data = target.read_bytes()
        as_values = target.suffix == ".json" and draw.random() < 0.7
        target.write_bytes(mutate_values(data, draw) if as_values else mutate(data, draw))
        child = command(words, self.folder / "damaged.txt")
        child.wait(120)
        verdict, detail = child.verdict()
        if verdict in ("traceback", "wrong", "hung"):
            kept = self.folder / "kept" / f"{number}-{target.name}"
            kept.parent.mkdir(exist_ok=True)
            shutil.copy(target, kept)
            kept.with_suffix(kept.suffix + ".txt").write_text(" ".join(words) + "\n" + child.said())
        return verdict, f"{kind}: {detail}"

    def _place(self, kind: str, where: Path) -> tuple[Path, list[str]]:
        """A whole file of a kind where it is to be damaged, and a command that reads it."""
        made, new = self.folder / "made", ["--output_dir", str(where / "new")]
        small = ["--num_train", "8", "--num_dev", "4", "--num_test", "8"]
        if kind.startswith(("rows", "chats")):
            where.mkdir()
            shutil.copy(self.folder / kind, where / kind)
            return where / kind, ["eval", "--data", str(where / kind), *small]
        name = {"adapter_config.json": "lora", "compare.json": "compare"}.get(kind, "full")
        shutil.copytree(made / name, where / name)
        folder = where / name
        if kind == "compare.json":
            return folder / kind, ["report", str(folder)]
        resume = [*TRAIN, "--resume", "--output_dir", str(folder), "--max_steps", "13"]
        log, model = str(folder / "steps.zlog"), ["--model", str(folder), "--data", str(demo_folder("data"))]
        others = {
            "run.yaml": (folder / kind, resume),
            "results.json": (folder / kind, ["replay", "--log", log, *new]),
            "steps.zlog": (folder / kind, ["eval", "--log", log, *small]),
            "trainer_state.json": (folder / "checkpoint-8" / kind, resume),
            "adapter_config.json": (folder / "start" / kind, ["eval", "--log", log, *small]),
        }
        return others.get(kind, (folder / kind, ["eval", *model, *small]))

    def _log(self, kind: str, draw: random.Random) -> tuple[str, str]:
        """A log, or its header with checksums that are right: the weights of some step, or LogError."""
        path, data = self.folder / "damaged.zlog", (self.folder / "whole.zlog").read_bytes()
        if kind == "log header":
            length = PREFIX.unpack_from(data)[3]
            text = zlib.decompress(data[PREFIX.size : PREFIX.size + length])
            packed = zlib.compress((mutate_values if draw.random() < 0.7 else mutate)(text, draw))
            path.write_bytes(_with_header(packed, data[PREFIX.size + length :]))
        else:
            path.write_bytes(mutate(data, draw))
        named = {name: tensor.clone() for name, tensor in self.base.items()}
        try:
            read = replay(path, list(named.items()))
        except LogError as error:
            changed = any(not torch.equal(named[name], self.base[name]) for name in named)
            if changed or len(str(error).splitlines()) != 1:
                return "wrong", f"{kind}: refused, with weights changed or in more than a sentence: {error}"
            return "refused", f"{kind}: {error!s:.200}"
        except Exception:
            return "traceback", f"{kind}: {traceback.format_exc().splitlines()[-1]}"
        whole = self.history[len(read.steps)]
        same = all(torch.equal(named[name], whole[name]) for name in named)
        # with a header whose checksums are right, a seed or an update says what it says
        return ("equal" if same or kind == "log header" else "wrong"), kind


def _with_header(packed: bytes, records: bytes) -> bytes:
    """A log's bytes with another header, and its records chained to it."""
    data = PREFIX.pack(b"ZEROGRAD", 1, 0, len(packed), zlib.crc32(packed)) + packed
    crc = zlib.crc32(packed)
    for at in range(0, len(records), 24):
        crc = zlib.crc32(records[at : at + 20], crc)
        data += records[at : at + 20] + struct.pack("<I", crc)
    return data
