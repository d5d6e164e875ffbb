"""The catalogue of finding codes: it lists exactly the codes that the sources use."""

import ast
import csv
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import dicom_etl
from dicom_etl.findings import Finding, finding_codes, make_finding, merge_equal, tabulate_findings
from dicom_etl.lake.schemas import FINDINGS

PACKAGE = Path(dicom_etl.__file__).parent
LINES = list(csv.DictReader((PACKAGE / "finding_codes.csv").read_text(encoding="utf-8").splitlines()))
STAGES = ["crawl", "extract", "build", "upload", "measure", "report"]


@cache
def parse_package() -> dict[str, ast.Module]:
    """The modules of the package by path, without those that only name codes of earlier versions."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.name != "renames.py")
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@cache
def string_literals() -> set[str]:
    """All string literals in the package."""
    nodes = [node for module in parse_package().values() for node in ast.walk(module)]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def list_hyphenated_arguments() -> Iterator[tuple[tuple[str, int], str, str]]:
    """Function and position, literal, and module of every positional argument that could be a code."""
    for path, module in parse_package().items():
        for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
            function = call.func
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            for position, argument in enumerate(call.args):
                for literal in list_hyphenated_values(argument):
                    yield (name, position), literal, path


def list_hyphenated_values(node: ast.expr) -> list[str]:
    """The strings with a hyphen that an expression may have as value: a literal, or either branch of a condition."""
    if isinstance(node, ast.IfExp):
        return list_hyphenated_values(node.body) + list_hyphenated_values(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) and "-" in node.value else []


# -- the catalogue ----------------------------------------------------------------------------------------------------


class TestCatalogue:
    def test_a_code_occurs_once(self) -> None:
        names = [line["code"] for line in LINES]
        assert sorted(set(names)) == sorted(names)

    def test_lines_are_in_the_order_of_the_stages(self) -> None:
        stages = [line["stage"] for line in LINES]
        assert stages == sorted(stages, key=STAGES.index)

    @pytest.mark.parametrize("line", LINES, ids=lambda line: line["code"])
    def test_a_line_is_complete(self, line: dict[str, str]) -> None:
        assert list(line) == ["code", "severity", "stage", "meaning", "action"]
        assert all(value and value.strip() == value for value in line.values())

    @pytest.mark.parametrize("line", LINES, ids=lambda line: line["code"])
    def test_severity_and_stage_are_known(self, line: dict[str, str]) -> None:
        assert line["severity"] in {"error", "warning", "info"}
        assert line["stage"] in STAGES

    @pytest.mark.parametrize("line", LINES, ids=lambda line: line["code"])
    def test_an_error_or_a_warning_has_an_action(self, line: dict[str, str]) -> None:
        assert line["severity"] == "info" or line["action"] != "none"

    def test_every_code_in_the_sources_is_in_the_catalogue(self) -> None:
        arguments = list(list_hyphenated_arguments())
        takes_code = {parameter for parameter, literal, _ in arguments if literal in finding_codes()}
        used = [(path, literal) for parameter, literal, path in arguments if parameter in takes_code]
        assert len(used) > 30
        assert [(path, code) for path, code in used if code not in finding_codes()] == []

    def test_a_literal_that_ends_like_a_code_is_one(self) -> None:
        endings = tuple(f"-{line['code'].rpartition('-')[2]}" for line in LINES)
        codes = {
            text for text in string_literals() if re.fullmatch(r"[a-z0-9][a-z0-9-]+", text) and text.endswith(endings)
        }
        assert codes - finding_codes().keys() == {"file-tree"}

    @pytest.mark.parametrize("code", [line["code"] for line in LINES])
    def test_every_code_of_the_catalogue_is_used(self, code: str) -> None:
        assert code in string_literals()


# -- a finding --------------------------------------------------------------------------------------------------------


class TestFinding:
    def test_severity_stage_and_message_come_from_the_catalogue(self) -> None:
        assert make_finding("laterality-conflict", "ds", unit="sub-1") == Finding(
            code="laterality-conflict",
            severity="warning",
            stage="build",
            dataset="ds",
            unit="sub-1",
            message="the images of a series differ in laterality; none is given",
        )

    def test_a_given_message_replaces_that_of_the_catalogue(self) -> None:
        assert make_finding("header-unreadable", "ds", message="because").message == "because"

    def test_an_unknown_code_is_refused(self) -> None:
        with pytest.raises(KeyError, match="no-such-code"):
            make_finding("no-such-code", "ds")

    def test_equal_findings_become_one_with_the_sum_of_their_counts(self) -> None:
        text = make_finding("non-dicom-file", "ds", value=".txt")
        pdf = make_finding("non-dicom-file", "ds", value=".pdf")
        merged = merge_equal([text, pdf, text, make_finding("non-dicom-file", "ds", value=".txt", count=3)])
        assert [(finding.value, finding.count) for finding in merged] == [(".pdf", 1), (".txt", 5)]

    def test_no_findings_give_an_empty_table(self) -> None:
        assert tabulate_findings([]).equals(FINDINGS.schema.empty_table())

    def test_a_finding_becomes_a_row_of_the_table(self) -> None:
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
