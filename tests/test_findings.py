"""The catalogue of findings, and that the code and the catalogue know the same codes."""

import ast
import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import dicom_etl
from dicom_etl.findings import Finding, finding_codes, make_finding, merge_equal, tabulate_findings
from dicom_etl.lake.schemas import FINDINGS

PACKAGE = Path(dicom_etl.__file__).parent
LINES = list(csv.DictReader((PACKAGE / "finding_codes.csv").read_text(encoding="utf-8").splitlines()))
STAGES = {"crawl", "extract", "build", "upload", "measure", "report"}

# functions that take the code of a finding, and its place among their arguments
_TAKE_A_CODE = {"make_finding": 0, "_found": 0, "NoRowError": 1, "Moment": 1, "Problem": 0}


@cache
def string_literals() -> set[str]:
    """All string literals in the package."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def codes_in_calls() -> Iterator[tuple[str, str]]:
    """(file, code) of every literal that is given where a code of a finding is expected."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for code in literals_of(argument(node)):
                    yield path.relative_to(PACKAGE).as_posix(), code


def argument(call: ast.Call) -> ast.expr | None:
    """The argument of a call that is the code of a finding."""
    function = call.func
    if (
        isinstance(function, ast.Attribute)
        and function.attr == "add"
        and isinstance(function.value, ast.Call | ast.Name)
    ):
        # Place.add; sets of this package are never given literals with a hyphen
        place = 0
    else:
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        place = _TAKE_A_CODE.get(name, -1)
    return call.args[place] if 0 <= place < len(call.args) else None


def literals_of(node: ast.expr | None) -> list[str]:
    """The strings that an expression may be: a literal, or either branch of a condition."""
    if isinstance(node, ast.IfExp):
        return literals_of(node.body) + literals_of(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) and "-" in node.value else []


# -- the catalogue ----------------------------------------------------------------------------------------------------


def test_a_code_stands_once() -> None:
    names = [line["code"] for line in LINES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["code"])
def test_a_line_is_complete(line: dict[str, str]) -> None:
    assert list(line) == ["code", "severity", "stage", "meaning", "action"]
    assert all(value and value.strip() == value for value in line.values())


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["code"])
def test_a_severity_and_a_stage_are_known(line: dict[str, str]) -> None:
    assert line["severity"] in {"error", "warning", "info"}
    assert line["stage"] in STAGES


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["code"])
def test_an_error_or_a_warning_says_what_to_do(line: dict[str, str]) -> None:
    assert line["severity"] == "info" or line["action"] != "none"


def test_every_code_that_the_sources_use_is_in_the_catalogue() -> None:
    used = list(codes_in_calls())
    assert len(used) > 40
    assert [(file, code) for file, code in used if code not in finding_codes()] == []


@pytest.mark.parametrize("code", [line["code"] for line in LINES if line["stage"] in {"crawl", "extract", "build"}])
def test_every_code_of_the_catalogue_is_used(code: str) -> None:
    assert code in string_literals()


# -- a finding --------------------------------------------------------------------------------------------------------


def test_severity_stage_and_message_come_from_the_catalogue() -> None:
    assert make_finding("laterality-conflict", "ds", unit="sub-1") == Finding(
        code="laterality-conflict",
        severity="warning",
        stage="build",
        dataset="ds",
        unit="sub-1",
        message="the images of a series differ in their side; no laterality is given",
    )


def test_a_message_of_its_own_counts() -> None:
    assert make_finding("header-unreadable", "ds", message="because").message == "because"


def test_a_code_that_is_not_catalogued_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="no-such-code"):
        make_finding("no-such-code", "ds")


def test_equal_findings_are_one_with_the_sum_of_their_counts() -> None:
    one, other = make_finding("non-dicom-file", "ds", value=".txt"), make_finding("non-dicom-file", "ds", value=".pdf")
    found = merge_equal([one, other, one, make_finding("non-dicom-file", "ds", value=".txt", count=3)])
    assert [(f.value, f.count) for f in found] == [(".pdf", 1), (".txt", 5)]


def test_no_findings_are_an_empty_table_with_its_columns() -> None:
    assert tabulate_findings([]).equals(FINDINGS.schema.empty_table())


def test_findings_become_rows_of_the_lakes_table() -> None:
    table = tabulate_findings([make_finding("file-empty", "ds", unit="sub-1", path="a.dcm", message="empty")])
    assert table.schema.equals(FINDINGS.schema)
    (row,) = table.to_pylist()
    assert {key: value for key, value in row.items() if value is not None} == {
        "code": "file-empty",
        "severity": "error",
        "stage": "extract",
        "dataset": "ds",
        "unit": "sub-1",
        "path": "a.dcm",
        "message": "empty",
        "count": 1,
    }
