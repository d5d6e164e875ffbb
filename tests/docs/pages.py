"""The pages of the documentation and the code blocks in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block of a page; `line` is the number of its first line of code."""

    language: str
    code: str
    line: int


def find_code_blocks(page: Path) -> Iterator[CodeBlock]:
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text[: match.start()].count("\n") + 2
        yield CodeBlock(match["language"], dedent(match["code"]), line)


def name_page(page: Path) -> str:
    """The path of a page below the repository, for the ids of tests."""
    return page.relative_to(ROOT).as_posix()
