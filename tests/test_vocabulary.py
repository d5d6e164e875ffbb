"""The names that others read have the terms of DICOM, FHIR and data engineering, and no words of our own.

Names are settings, finding codes, columns, states, modules, and public functions, classes and parameters. A word is
forbidden where a standard term exists for what it meant here; the glossary of the documentation has the terms.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_etl import renames
from dicom_etl.cli.app import SUBCOMMANDS
from dicom_etl.findings import finding_codes
from dicom_etl.headers.catalogue import catalogue
from dicom_etl.lake import schemas
from dicom_etl.settings import describe_settings
from dicom_etl.upload.ledger import State

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "dicom_etl").rglob("*.py"), *(ROOT / "assets").glob("*.py"), *(ROOT / "resources").glob("*.py")]

FORBIDDEN = {
    # word: the term instead of it
    "addressing": "id strategy",
    "adopt": "merge (existing study)",
    "adopted": "merged",
    "ahead": "prefetch",
    "alone": "single, only",
    "announce": "attempt",
    "beside": "in addition to, duplicate",
    "claim": "patient evidence",
    "contradicts": "conflict",
    "cut": "truncated",
    "disagree": "conflict",
    "disagrees": "conflict",
    "echo": "redaction",
    "echoes": "redaction",
    "flight": "concurrent requests",
    "foreign": "existing, external",
    "forget": "withdraw",
    "forgetting": "withdrawal",
    "forgotten": "withdrawn",
    "former": "previous",
    "forms": "encoding, variants",
    "gate": "quality check",
    "gates": "quality checks",
    "gave": "failed",
    "glance": "snapshot",
    "gone": "missing, orphaned",
    "junk": "system files",
    "knows": "has, contains",
    "laid": "written",
    "leaving": "withdrawal",
    "left": "orphaned, remaining",
    "lies": "is in",
    "linked": "external",
    "marks": "fingerprints, duplicate flags",
    "mend": "fix",
    "mine": "of this lake",
    "needmore": "incomplete data",
    "ours": "of this lake",
    "outcome": "result",
    "outcomes": "upload ledger, results",
    "pace": "concurrency limit",
    "person": "patient",
    "persons": "patient matching",
    "piece": "chunk, batch",
    "pieces": "chunks, batches",
    "place": "location, path, position",
    "places": "locations, paths, positions",
    "readmit": "undo",
    "said": "value, content, result",
    "says": "contains, states",
    "sendings": "uploads",
    "shrink": "content loss",
    "shrinks": "removes content",
    "slab": "batch",
    "some": "partial",
    "speaks": "contains",
    "spot": "offset, position",
    "surprise": "unsupported",
    "tell": "notify",
    "theirs": "external",
    "told": "notified",
    "tried": "attempt",
    "trouble": "unfinished, failures",
    "troubled": "held",
    "useless": "unmatched",
    "vanished": "missing",
    "verdict": "result of a check",
    "walk": "parse",
    "walked": "parsed",
    "whose": "patient matching",
}
STANDARD = ("person_name", "operation_outcome")  # a value representation of DICOM (PN), a resource type of FHIR


def words(name: str) -> list[str]:
    """The words of a name in snake_case, kebab-case, CamelCase or with dots, in lower case."""
    snake = "_".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)).lower()
    for term in STANDARD:
        snake = snake.replace(term, "")
    return snake.split("_")


def lake_tables() -> dict[str, schemas.Table]:
    tables = [value for value in vars(schemas).values() if isinstance(value, schemas.Table)]
    return {table.name: table for table in [*tables, schemas.header_table()]}


def public_names(file: Path) -> Iterator[str]:
    """Public functions, classes and their public parts of a module, and the parameters of these functions."""
    nodes: list[ast.AST] = list(ast.parse(file.read_text(encoding="utf-8")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            not node.name.startswith("_") or node.name in ("__init__", "__call__")
        ):
            yield node.name
            arguments = node.args
            yield from (a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
            nodes += node.body
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def public_names_of_code() -> set[tuple[str, str]]:
    return {
        (str(file.relative_to(ROOT)), name)
        for file in SOURCES
        for name in public_names(file)
        if not name.startswith("_") or name in ("__init__", "__call__")
    }


NAMES = {
    "setting": lambda: {("settings", name) for name, _, _ in describe_settings()},
    "command": lambda: {("cli", name) for name in SUBCOMMANDS},
    "finding code": lambda: {("finding_codes.csv", code) for code in finding_codes()},
    "column": lambda: {
        (table.name, column)
        for table in lake_tables().values()
        for column in set(table.schema.names) - {column.name for column in catalogue()}
    },
    "table": lambda: {("lake", name) for name in lake_tables()},
    "state": lambda: {("upload ledger", str(state)) for state in State},
    "module": lambda: {(str(file.relative_to(ROOT)), str(file.relative_to(ROOT))) for file in SOURCES},
    "public name": public_names_of_code,
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_have_standard_terms(kind: str) -> None:
    wrong = [
        f"{source}: {name} ({word}: {FORBIDDEN[word]})"
        for source, name in sorted(NAMES[kind]())
        for word in words(name)
        if word in FORBIDDEN
    ]
    assert wrong == []


class TestRenames:
    """Names of earlier versions: what they are called now exists, and nothing has the old name."""

    def test_settings(self) -> None:
        existing = {name for name, _, _ in describe_settings()}
        assert set(renames.SETTINGS.values()) <= existing
        assert not existing & set(renames.SETTINGS)

    def test_commands(self) -> None:
        assert set(renames.COMMANDS.values()) <= set(SUBCOMMANDS)
        assert not set(SUBCOMMANDS) & set(renames.COMMANDS)

    def test_options(self) -> None:
        code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dicom_etl/cli").glob("*.py"))
        existing = set(re.findall(r'"(--[a-z-]+)"', code))
        assert set(renames.OPTIONS.values()) <= existing
        assert not existing & set(renames.OPTIONS)

    def test_finding_codes(self) -> None:
        assert set(renames.FINDING_CODES.values()) <= set(finding_codes())
        assert not set(finding_codes()) & set(renames.FINDING_CODES)

    def test_upload_states(self) -> None:
        assert set(renames.UPLOAD_STATES.values()) <= set(State)
        assert not set(State) & set(renames.UPLOAD_STATES)

    @pytest.mark.parametrize("table", sorted(set(renames.COLUMNS) & set(lake_tables())))
    def test_columns(self, table: str) -> None:
        existing = set(lake_tables()[table].schema.names)
        assert set(renames.COLUMNS[table].values()) <= existing
        assert not existing & set(renames.COLUMNS[table])
