"""The report as one HTML file: the template `report.html.j2` and the style sheet `report.css`, filled with a view.

The file refers to nothing outside itself, works without JavaScript and has no timestamp: the same view gives the same
bytes. Values of tags are hostile: everything is escaped, and a content security policy forbids all that is not inline.

Not here: the content of the sections (`view`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from dicom_etl.quality.report.view import View
from dicom_etl.version import VERSION

__all__ = ["POLICY", "CsvFile", "render_report"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

_CATEGORIES = {
    "files": "Files",
    "completeness": "Completeness",
    "conformance": "Conformance",
    "consistency": "Consistency",
    "plausibility": "Plausibility",
    "privacy": "Privacy",
}
_RESULTS = {
    "pass": ("✓", "pass"),
    "warn": ("!", "warn"),
    "fail": ("✕", "fail"),
    "not-evaluated": ("–", "not evaluated"),
}
_PLURALS = {"study": "studies", "series": "series"}


@dataclass(frozen=True)
class CsvFile:
    """A table as a CSV file next to the report; it is not written if it has too many rows."""

    name: str
    rows: int
    is_written: bool

    def make_command(self, dataset: str) -> str:
        """The command that writes the file with any number of rows."""
        command = self.name.removesuffix(".csv")
        return f"dicom-etl {command} {shlex.quote(dataset)} --output {self.name}"


def render_report(view: View, csv_files: Mapping[str, CsvFile], *, reference_date: str | None = None) -> str:
    """The HTML of the report of a dataset.

    Args:
        view: the content of its sections.
        csv_files: by name.
        reference_date: the date that dates were compared with, if one is set.
    """
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return _load_template().render(
        view=view,
        csv_files=csv_files,
        quoted_dataset=shlex.quote(view.dataset),
        reference_date=reference_date,
        version=VERSION,
        policy=POLICY,
        style=Markup(style),  # not escaped: it is part of this package
        categories=_CATEGORIES,
        results=_RESULTS,
    )


@cache
def _load_template() -> Template:
    environment = Environment(
        loader=PackageLoader("dicom_etl.quality.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _format_number
    environment.filters["noun"] = _choose_noun
    return environment.get_template("report.html.j2")


def _format_number(n: int) -> str:
    """A number with narrow spaces between thousands, which are not mistaken for a decimal sign in any language."""
    return f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _choose_noun(noun: str, n: int = 2) -> str:
    """The noun in the singular or plural, for `n` objects."""
    return noun if n == 1 else _PLURALS.get(noun, f"{noun}s")
