"""report: one safe, self-contained page and its tables, with the same bytes each time."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from dicom_etl.findings import make_finding, tabulate_findings
from dicom_etl.lake.schemas import ALL_FINDINGS, COMPLETENESS, MEASURES
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.check_table import Measure, tabulate_measures
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError
from dicom_etl.stages import report as stage
from dicom_etl.stages.measure import measure
from dicom_etl.stages.report import report
from tests.stages.example_lake import example_lake

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'><svg/onload=alert(1)>", "{{ 7*7 }}")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Page(HTMLParser):
    """The elements of a page, its text without styles and scripts, and its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Settings]:
    lake, settings = example_lake(tmp_path_factory.mktemp("examples"))
    for dataset in ("breast", "heart"):
        measure(dataset, lake, settings)
        report(dataset, lake, settings)
    return lake, settings


def page(lake: Lake, dataset: str) -> str:
    return (Path(lake.root) / "quality" / dataset / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def breast(reported: tuple[Lake, Settings]) -> Page:
    return Page(page(reported[0], "breast"))


def completeness_row(**given: object) -> dict[str, object]:
    row: dict[str, object] = {
        "dataset": "d",
        "level": "series",
        "group_by": "all",
        "group": "all",
        "tag": "00080060",
        "keyword": "Modality",
        "creator": None,
        "requirement": "1",
        "n_applicable": 4,
        "n_unknown": 0,
        "n_absent": 1,
        "n_empty": 0,
        "n_unusable": 0,
        "n_filled": 3,
        "n_partial": 0,
    }
    return row | given


def hostile_lake(folder: Path, fingerprint: str = "") -> Lake:
    """Quality tables in which every text that a file or a folder can set is hostile."""
    lake = Lake(str(folder)).open()
    tags = [completeness_row(level=level) for level in ("instance", "series", "study")]
    measures, findings = [], []
    for text in HOSTILE:
        tags += [completeness_row(group_by="modality", group=text, level=level) for level in ("series", "study")]
        tags.append(
            completeness_row(group_by="manufacturer", group=text, n_filled=4 if "img" in text else 0, n_absent=0)
        )
        tags.append(completeness_row(level="instance", tag="0029xx08", keyword=None, creator=text, requirement=None))
        counted = ("files", "series", 4, 4, 0, "not-evaluated")
        measures += [
            Measure("inventory", *counted, group_by="modality", group=text),
            Measure("inventory", *counted, group_by="subject", group=text),
            Measure("series-by-modality", *counted, group_by="subject", group=text, reason=text),
            Measure("subjects-match", "consistency", "subject", 1, 0, 1, "fail", "subject", text, reason=text),
            Measure(
                "files-by-kind", "files", "file", 1, 1, 0, "not-evaluated", group_by="kind", group=text, reason=text
            ),
            Measure("body-part-known", "conformance", "series", 4, 3, 1, "warn", reason=text),
        ]
        where = {"path": text, "subject": text, "sample": text, "value": text, "message": text}
        findings.append(make_finding("non-dicom-file", "d", **where))
    measures.append(Measure("body-part-known", "conformance", "series", 4, 3, 1, "warn"))
    lake.write(COMPLETENESS, pa.Table.from_pylist(tags, schema=COMPLETENESS.schema), dataset="d")
    lake.write(MEASURES, tabulate_measures("d", measures), dataset="d")
    lake.write(ALL_FINDINGS, tabulate_findings(findings), fingerprint=fingerprint, dataset="d")
    return lake


class TestSafety:
    def test_hostile_values_are_text(self, tmp_path: Path) -> None:
        lake = hostile_lake(tmp_path / "lake")
        report("d", lake, Settings())
        text = page(lake, "d")
        parsed = Page(text)
        for value in HOSTILE:
            assert value in parsed.text
            assert value not in text or value == "{{ 7*7 }}"
        assert "img" not in parsed.tags
        assert parsed.tags.count("script") == 1
        assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]

    def test_a_hostile_dataset_name_is_text_and_a_plain_path(self, tmp_path: Path) -> None:
        lake, name = Lake(str(tmp_path / "lake")).open(), "../<b>x</b>"
        for table in (COMPLETENESS, MEASURES, ALL_FINDINGS):
            lake.write(table, table.schema.empty_table(), dataset=name)
        summary = report(name, lake, Settings())
        text = (Path(lake.root) / summary.report).read_text(encoding="utf-8")
        assert "<b>x</b>" not in text
        assert "../" not in summary.report
        assert "There are no findings." in text

    def test_the_policy_forbids_all_that_is_not_inline(self, breast: Page) -> None:
        assert ("meta", "content", POLICY) in breast.attributes

    @pytest.mark.parametrize("dataset", ["breast", "heart"])
    def test_nothing_outside_the_file_is_referenced(self, reported: tuple[Lake, Settings], dataset: str) -> None:
        text = page(reported[0], dataset)
        references = [
            value for _, name, value in Page(text).attributes if name in ("src", "href", "action", "data", "srcset")
        ]
        assert references
        assert all(re.fullmatch(r"#[a-z]+", value) for value in references)
        assert not re.search(r"url\(|@import|https?://(?!imaging\.demo)", text)

    @pytest.mark.parametrize("dataset", ["breast", "heart"])
    def test_the_page_is_small(self, reported: tuple[Lake, Settings], dataset: str) -> None:
        assert len(page(reported[0], dataset).encode()) < 400_000

    @pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"])
    def test_csv_cells_with_formulas_are_escaped(self, tmp_path: Path, cell: str) -> None:
        lake = hostile_lake(tmp_path / "lake")
        lake.write(
            ALL_FINDINGS, tabulate_findings([make_finding("non-dicom-file", "d", value=cell, count=2)]), dataset="d"
        )
        report("d", lake, Settings())
        text = (Path(lake.root) / "quality/d/findings.csv").read_bytes().decode()
        (row,) = csv.DictReader(io.StringIO(text, newline=""))
        assert row["value"] == f"'{cell}"
        assert (row["code"], row["count"], row["path"]) == ("non-dicom-file", "2", "")


class TestContent:
    def test_everything_is_shown_without_javascript(self, breast: Page) -> None:
        for text in (
            "sub-5",
            "row without a folder",
            "MAMMA",
            "BodyPartExamined",
            "type-1-missing",
            "RTDOSE",
            "SIEMENS",
        ):
            assert text in breast.text
        # levels are switched by radio buttons and CSS
        assert breast.tags.count("input") == 3 + 1
        assert {value for tag, name, value in breast.attributes if (tag, name) == ("input", "id")} == {
            "level-series",
            "level-study",
            "level-instance",
            "filter",
        }

    def test_tables_have_captions_and_scopes(self, breast: Page) -> None:
        assert breast.tags.count("table") == breast.tags.count("caption") > 5
        scopes = [value for tag, name, value in breast.attributes if (tag, name) == ("th", "scope")]
        assert len(scopes) == breast.tags.count("th")
        assert set(scopes) == {"col", "row", "rowgroup"}

    def test_ids_are_unique(self, breast: Page) -> None:
        ids = [value for _, name, value in breast.attributes if name == "id"]
        assert len(ids) == len(set(ids))
        targets = [value[1:] for tag, name, value in breast.attributes if (tag, name) == ("a", "href")]
        assert set(targets) <= set(ids)

    def test_a_cell_shows_percentage_type_and_numbers(self, tmp_path: Path) -> None:
        lake = hostile_lake(tmp_path / "lake")
        report("d", lake, Settings())
        assert '<td class="h7" title="3 of 4 filled, 1 absent">75<sup>1</sup></td>' in page(lake, "d")

    def test_nearly_all_is_not_100_percent(self, tmp_path: Path) -> None:
        lake = hostile_lake(tmp_path / "lake")
        rows = [
            completeness_row(level=level, n_applicable=1000, n_filled=999) for level in ("instance", "series", "study")
        ]
        lake.write(COMPLETENESS, pa.Table.from_pylist(rows, schema=COMPLETENESS.schema), dataset="d")
        report("d", lake, Settings())
        assert 'title="999 of 1000 filled, 1 absent">99<' in page(lake, "d")

    def test_gaps_that_are_undecided_are_hatched(self, tmp_path: Path) -> None:
        lake = hostile_lake(tmp_path / "lake")
        row = {"n_absent": 0, "n_unknown": 4, "n_filled": 0, "requirement": "1C"}
        rows = [completeness_row(level=level, **row) for level in ("instance", "series", "study")]
        lake.write(COMPLETENESS, pa.Table.from_pylist(rows, schema=COMPLETENESS.schema), dataset="d")
        report("d", lake, Settings())
        assert '<td class="h0 u" title="0 of 4 filled, 4 unknown">0</td>' in page(lake, "d")

    def test_the_summary_for_programs(self, reported: tuple[Lake, Settings]) -> None:
        summary = json.loads((Path(reported[0].root) / "quality/heart/summary.json").read_text())
        assert summary["counts"] == {
            "subject": 4,
            "study": 9,
            "series": 14,
            "instance": 47,
            "file": 49,
            "unreadable": 2,
        }
        assert summary["findings"]["error"] == {"findings": 2, "occurrences": 2}
        readable = next(check for check in summary["checks"] if check["check"] == "files-readable")
        assert (readable["n_applicable"], readable["n_pass"], readable["result"]) == (49, 47, "warn")


class TestStage:
    def test_the_same_tables_give_the_same_bytes(self, reported: tuple[Lake, Settings]) -> None:
        lake, settings = reported
        first = report("breast", lake, settings)
        before = [lake.read_bytes(file) for file in first.files]
        lake.remove("quality/breast/summary.json")
        assert report("breast", lake, settings) == first
        assert [lake.read_bytes(file) for file in first.files] == before
        assert [Path(file).name for file in first.files] == [
            "report.html",
            "summary.json",
            "completeness.csv",
            "findings.csv",
        ]

    def test_an_unchanged_report_is_not_written_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lake = hostile_lake(tmp_path / "lake", "first")
        first = report("d", lake, Settings())
        with monkeypatch.context() as patch:
            for name in ("read", "read_batches", "write_bytes"):
                patch.delattr(Lake, name)
            assert report("d", lake, Settings()) == first

    @pytest.mark.parametrize("name", ["report.html", "summary.json", "completeness.csv", "findings.csv"])
    def test_a_removed_file_is_written_again(self, tmp_path: Path, name: str) -> None:
        lake = hostile_lake(tmp_path / "lake", "first")
        report("d", lake, Settings())
        lake.remove(f"quality/d/{name}")
        report("d", lake, Settings())
        assert lake.exists(f"quality/d/{name}")

    def test_changed_tables_give_another_report(self, tmp_path: Path) -> None:
        lake = hostile_lake(tmp_path / "lake", "first")
        report("d", lake, Settings())
        lake.write(ALL_FINDINGS, ALL_FINDINGS.schema.empty_table(), fingerprint="second", dataset="d")
        report("d", lake, Settings())
        assert "There are no findings." in page(lake, "d")

    def test_an_interrupted_report_is_written_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lake = hostile_lake(tmp_path / "lake", "first")
        first = report("d", lake, Settings())
        with monkeypatch.context() as patch:
            patch.setattr(stage, "render_report", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                report("d", lake, Settings(reference_date="2024-02-01"))
        assert not lake.exists("quality/d/summary.json")
        assert report("d", lake, Settings()) == first

    def test_a_lake_on_an_object_store(self, tmp_path: Path) -> None:
        local, stored = hostile_lake(tmp_path / "lake", "first"), Lake("memory://reported").open()
        try:
            for table in (COMPLETENESS, MEASURES, ALL_FINDINGS):
                stored.write(table, local.read(table, dataset="d"), fingerprint="first", dataset="d")
            assert report("d", stored, Settings()) == report("d", local, Settings())
            assert stored.read_bytes("quality/d/report.html") == local.read_bytes("quality/d/report.html")
        finally:
            stored.remove_folder("")


class TestLargeTables:
    def test_a_command_writes_tables_too_long_for_a_spreadsheet(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lake = hostile_lake(tmp_path / "lake", "first")
        report("d", lake, Settings())
        monkeypatch.setattr(stage, "MOST_CSV_ROWS", 4)
        result = report("d", lake, Settings())
        assert [Path(file).name for file in result.files] == ["report.html", "summary.json", "findings.csv"]
        assert not lake.exists("quality/d/completeness.csv")  # that of the previous report is removed
        command = "dicom-etl completeness d --output completeness.csv"
        assert command in Page(page(lake, "d")).text
        summary = json.loads(lake.read_bytes("quality/d/summary.json") or b"")
        assert summary["tables"]["completeness.csv"]["command"] == command

    def test_subjects_that_are_not_listed_are_counted(self, tmp_path: Path) -> None:
        lake = hostile_lake(tmp_path / "lake")
        counted = [
            Measure("subjects-listed", "files", "subject", 1500, 1, 1499, "not-evaluated"),
            Measure("subjects-listed", "files", "subject", 1500, 1, 1499, "not-evaluated", reason="not listed"),
            Measure("inventory", "files", "instance", 5, 5, 0, "not-evaluated", "subject", "sub-7"),
            Measure("tags-with-gaps", "completeness", "tag", 3, 3, 0, "not-evaluated", "subject", "sub-7"),
        ]
        lake.write(MEASURES, tabulate_measures("d", counted), dataset="d")
        findings = [
            make_finding("non-dicom-file", "d", subject=subject, path=str(n))
            for n, subject in enumerate(["sub-7"] * 2 + ["x"])
        ]
        lake.write(ALL_FINDINGS, tabulate_findings(findings), dataset="d")
        report("d", lake, Settings())
        text = page(lake, "d")
        (row,) = re.findall(r"<tr><th scope=\"row\">sub-7</th>.*?</tr>", text)
        assert re.findall(r">(\d+|–)</td>", row)[-4:] == ["5", "0", "3", "2"]  # instances, not read, gaps, findings
        assert "1\N{NARROW NO-BREAK SPACE}499 are not" in text

    def test_a_code_has_a_few_examples_the_most_frequent_first(self, tmp_path: Path) -> None:
        lake = hostile_lake(tmp_path / "lake")
        findings = [
            make_finding("non-dicom-file", "d", path=f"file-{n:04d}", count=9 if n == 700 else 1) for n in range(900)
        ]
        lake.write(ALL_FINDINGS, tabulate_findings(findings), dataset="d")
        report("d", lake, Settings())
        examples = re.findall(r"<li>(.*?)</li>", page(lake, "d"))
        assert examples == ["file-0700 · × 9", "file-0000", "file-0001", "file-0002", "file-0003"]
        summary = json.loads(lake.read_bytes("quality/d/summary.json") or b"")
        assert summary["codes"]["non-dicom-file"] == {"findings": 900, "occurrences": 908}


class TestSettings:
    def test_the_reference_date_is_shown_if_it_is_set(self, reported: tuple[Lake, Settings]) -> None:
        lake, settings = reported
        assert "· reference date" not in Page(page(lake, "heart")).text
        report("heart", lake, settings.model_copy(update={"reference_date": "2024-02-01"}))
        assert "reference date 2024-02-01" in Page(page(lake, "heart")).text
        report("heart", lake, settings)

    def test_identifying_values_are_not_shown(self, reported: tuple[Lake, Settings]) -> None:
        for dataset in ("breast", "heart"):
            text = page(reported[0], dataset)
            assert not re.search("Fictional|DEMO-0042|Müller|Citizen|A18-0614", text)

    def test_a_dataset_that_was_not_measured_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="measure it first"):
            report("nothing", Lake(str(tmp_path / "lake")).open(), Settings())
