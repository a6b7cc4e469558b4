"""Run the commands of docs/tutorial.md, and put what they print, and the pictures that they draw, where they stand.

    python scripts/tutorial.py           (two minutes; run it after a change of what is printed or drawn)

Each ```bash block is run in order in one temporary folder that holds the examples; the ```text block behind it, if
there is one, becomes its output. Pictures that the page shows are copied from the folder of the run.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tutorial.md"
PICTURES = ROOT / "docs" / "pictures"
BLOCK = re.compile(r"```bash\n(?P<commands>.*?)```\n(?:(?P<gap>(?:(?!```).)*)```text\n.*?```\n)?(?=\n|\Z)", re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\(pictures/(?P<name>[\w-]+)\.png\)")


def main() -> None:
    """Rewrite the page and its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        page = PAGE.read_text(encoding="utf-8")
        names = {picture["name"] for picture in PICTURE.finditer(page)}

        def filled(match: re.Match[str]) -> str:
            text = _filled(match, Path(folder))
            for path in [p for p in sorted(Path(folder).glob("runs/*/*.png")) if p.stem in names]:
                PICTURES.mkdir(exist_ok=True)
                shutil.copyfile(path, PICTURES / path.name)
                names.remove(path.stem)  # as the first run left it
            return text

        page = BLOCK.sub(filled, page)
    PAGE.write_text(page, encoding="utf-8")


def _filled(match: re.Match[str], folder: Path) -> str:
    """A block with the output of its commands."""
    commands = match["commands"]
    if commands.startswith("pip "):
        return match[0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-ec", commands], cwd=folder, env={**os.environ, "PATH": path, "COLUMNS": "100"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(f"$ {commands}{ran.stdout}")
    if ran.returncode:
        sys.exit(f"the commands above ended with status {ran.returncode}; the page stays as it was")
    if match["gap"] is None:
        return match[0]
    output = ran.stdout.strip().replace(str(folder), "/home/you")
    return f"```bash\n{commands}```\n{match['gap']}```text\n{output}\n```\n"


if __name__ == "__main__":
    main()
