"""Outcomes of cases, one JSON line each as they come, so that an attack can be stopped and go on; and their table."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

GOOD = ("equal", "refused")  # the bits of a run that nothing happened to; or one clear sentence
BAD = ("traceback", "lost", "wrong", "hung")  # lost: steps that were in the log; wrong: other bits, and no word


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        attack: Its kind.
        number: Its number in the kind: the seed of what is drawn for it.
        verdict: One of `GOOD` or `BAD`.
        detail: What was done and said, in a line.
    """

    attack: str
    number: int
    verdict: str
    detail: str = ""


class Outcomes:
    """The outcomes so far, in a file that grows.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = [Outcome(**json.loads(line)) for line in lines if line.endswith("}")]

    def add(self, outcome: Outcome) -> None:
        """Note one, and print it where it is bad."""
        self.done.append(outcome)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        if outcome.verdict in BAD:
            print(f"{outcome.attack} {outcome.number}: {outcome.verdict}: {outcome.detail}", flush=True)

    def missing(self, attack: str, count: int) -> list[int]:
        """Numbers of the cases of an attack that are not done."""
        known = {o.number for o in self.done if o.attack == attack}
        return [number for number in range(count) if number not in known]

    def run(self, attack: str, count: int, case: Callable[[int], tuple[str, str]]) -> None:
        """Run what is missing of an attack; `case` gives the verdict and the detail of a number."""
        missing = self.missing(attack, count)
        for place, number in enumerate(missing):
            self.add(Outcome(attack, number, *case(number)))
            if place % 100 == 99:
                print(f"{attack}: {place + 1} of {len(missing)}", flush=True)

    def bad(self) -> list[Outcome]:
        """Those that are not as wanted."""
        return [o for o in self.done if o.verdict in BAD]

    def table(self) -> str:
        """A row an attack, with how many cases ended in which way."""
        return "\n".join(self._rows()) + "\n"

    def _rows(self) -> Iterator[str]:
        yield f"| attack | cases | {' | '.join((*GOOD, *BAD))} |"
        yield "|---|" + "---|" * (1 + len(GOOD) + len(BAD))
        for attack in dict.fromkeys(o.attack for o in self.done):
            counts = Counter(o.verdict for o in self.done if o.attack == attack)
            cells = " | ".join(str(counts[verdict]) for verdict in (*GOOD, *BAD))
            yield f"| {attack} | {counts.total():,} | {cells} |"
