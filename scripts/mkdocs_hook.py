"""Files of the repository that pages link to, for the documentation site: results, examples, and two texts.

MkDocs knows only what lies under `docs/`. Pages link to `../benchmarks/results/...`, which is right in the repository;
a copy would be a megabyte twice, and a symbolic link is not followed where a repository is browsed. So the site takes
those files from where they are, and the links lose their `../`.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks/results", "examples")
TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
KINDS = {".md", ".png", ".csv", ".py"}
OUTWARDS = re.compile(rf"\]\(\.\./(?=(?:{'|'.join((*FOLDERS, *TEXTS))})\b)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside `docs/`. The README keeps its name: the site's first page is `docs/index.md`."""
    found = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.suffix in KINDS]
    for path in [*found, *(ROOT / text for text in TEXTS)]:
        where = path.relative_to(ROOT).as_posix().replace("README.md", "read-me.md")
        files.append(File.generated(config, where, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of `docs/` become links inside the site; those of the README and CONTRIBUTING come from above it."""
    if page.file.src_uri in ("read-me.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        markdown = markdown.replace("](docs/", "](").replace("](examples)", "](python.md#programs)")
    return OUTWARDS.sub("](", markdown).replace("](README.md", "](read-me.md")
