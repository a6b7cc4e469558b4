"""The encoding of a text file: what its first bytes say, and which byte on which line it does not have."""

import codecs
from pathlib import Path

from zerograd.tasks.table import DataError

MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def encoding_of(path: Path, given: str | None) -> str:
    """The encoding of a text file, by its first bytes where none is given.

    Raises:
        DataError: There is no such encoding, or the file has zero bytes that no mark explains.
    """
    if given is not None:
        try:
            name = codecs.lookup(given).name
            "".encode(name)
        except LookupError:
            raise DataError(f"unknown encoding {given!r}; write one such as cp1252, latin-1 or utf-16") from None
        return "utf-8-sig" if name == "utf-8" else name
    with path.open("rb") as file:
        start = file.read(4096)
    for mark, name in MARKS:
        if start.startswith(mark):
            return name
    if b"\0" in start:
        raise DataError(
            f"{path} has zero bytes, which no text in UTF-8 has; if it is UTF-16 without a mark, give "
            "--encoding utf-16-le"
        )
    return "utf-8"


def undecodable(path: Path, name: str, error: UnicodeError) -> str:
    """What cannot be read, on which line, and what to do."""
    shown = "UTF-8" if name.startswith("utf-8") else name
    where = str(error)
    if not name.startswith(("utf-16", "utf-32")):  # whose line breaks are several bytes
        with path.open("rb") as file:
            for line, content in enumerate(file, 1):
                try:
                    content.decode(name)
                except UnicodeDecodeError as found:
                    near = content[max(0, found.start - 12) : found.start].decode(name, "replace")
                    where = f"line {line} has the byte 0x{content[found.start]:02x} behind {near!r}"
                    break
    return (
        f"{path} is not {shown}: {where}. Name its encoding (--encoding cp1252 for a file of older Windows programs), "
        f"or convert it: iconv -f cp1252 -t utf-8 {path} > utf8{path.suffix}"
    )
