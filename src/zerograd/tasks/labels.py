"""Which class a value of a label column stands for, whatever its file's format makes of numbers and truth values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Classes:
    """Classes by the values and words that stand for them.

    Args:
        exact: By what is written.
        loose: By it, without what a format makes of it: 1.0 and "1" are 1, "TRUE" is true.
    """

    exact: dict[str, int]
    loose: dict[str, int]

    @classmethod
    def of(cls, labels: Sequence[str], values: Sequence[Any]) -> "Classes":
        """Of label words, and the values of their column (none: 0, 1, ...)."""
        exact: dict[str, int] = {}
        loose = {"false": 0, "true": 1} if not values and len(labels) == 2 else {}
        for names in (values or range(len(labels)), labels):
            for number, name in enumerate(names):
                exact.setdefault(str(name).strip(), number)
                loose.setdefault(_loosely(name), number)
                if isinstance(name, bool):
                    loose.setdefault(str(int(name)), number)
        return cls(exact, loose)

    def find(self, value: Any) -> int | None:
        """The class of a value; None: it stands for none."""
        found = self.exact.get(str(value).strip())
        return self.loose.get(_loosely(value)) if found is None else found


def whole_number(value: Any) -> Any:
    """A number for the text of one ("1" in a csv) and for 1.0 (a column with gaps); else the value itself."""
    if isinstance(value, (str, float)) and str(value).strip().removesuffix(".0").isdecimal():
        return int(float(value))
    return value


def _loosely(value: Any) -> str:
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text.lower() if text.lower() in ("true", "false") else text
    return str(int(number)) if number.is_integer() else text
