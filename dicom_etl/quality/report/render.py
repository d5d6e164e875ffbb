"""The report as one HTML file: the template `report.html.j2` and the style `report.css`, filled with a view.

The file names nothing outside itself, works without JavaScript, and holds no clock: the same view gives the same
bytes. Values of tags are hostile: everything is escaped, and a content security policy forbids all but what is inline.
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

__all__ = ["POLICY", "CsvFile", "render"]

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
    "not-evaluated": ("i", "not evaluated"),
}
_PLURALS = {"study": "studies", "series": "series"}


@dataclass(frozen=True)
class CsvFile:
    """A table beside the report; where it has too many rows it is not written."""

    name: str
    rows: int
    is_written: bool

    def command(self, dataset: str) -> str:
        """The command that writes it, however many rows it has."""
        command = self.name.removesuffix(".csv")
        return f"dicom-etl {command} {shlex.quote(dataset)} --output {self.name}"


def render(view: View, tables: Mapping[str, CsvFile], *, reference_date: str | None = None) -> str:
    """The report of a dataset.

    Args:
        view: what it shows.
        tables: the CSV files, by name.
        reference_date: the date that counted as today, where one was set.
    """
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return _template().render(
        view=view,
        tables=tables,
        quoted=shlex.quote(view.dataset),
        reference_date=reference_date,
        version=VERSION,
        policy=POLICY,
        style=Markup(style),  # our own file
        categories=_CATEGORIES,
        results=_RESULTS,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("dicom_etl.quality.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["many"] = _many
    return environment.get_template("report.html.j2")


def _number(n: int) -> str:
    """Thousands parted by narrow blanks, as no language mistakes them."""
    return f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _many(level: str, n: int = 2) -> str:
    """The word for `n` entities of a level."""
    return level if n == 1 else _PLURALS.get(level, f"{level}s")
