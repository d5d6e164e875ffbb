"""`dicom-etl run`, `audit` and the stages: results, exit codes, and sentences instead of stack traces."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.datasets import write_instance


def units(lake: Path) -> set[str]:
    """The subjects that have header rows."""
    return set(pq.read_table(lake / "headers/ds/0000.parquet", columns=["unit"])["unit"].to_pylist())


def resource_ids(lake):
    """The ids of all resources of the lake."""
    lines = [line for path in lake.glob("fhir/*/ds/*.ndjson") for line in path.read_text().splitlines()]
    return {json.loads(line)["id"] for line in lines}


class TestExitCodes:
    def test_a_run_ends_with_0_and_a_report(self, run_command, small, tmp_path):
        code, out, err = run_command("run", small, "--lake", tmp_path / "lake")
        assert (code, err) == (0, "")
        assert "report.html" in out
        assert (tmp_path / "lake/quality/ds/report.html").is_file()
        assert len((tmp_path / "lake/fhir/ImagingStudy/ds/0000.ndjson").read_text().splitlines()) == 2

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda path: None, "neither a folder nor a registered dataset"),
            (lambda path: path.mkdir(), "no file that could be DICOM"),
            (lambda path: (path.mkdir(), (path / "a.txt").write_text("text")), "none of the 1 files"),
        ],
        ids=["missing", "empty", "no DICOM"],
    )
    def test_a_dataset_without_dicom_is_one_sentence_and_2(self, run_command, tmp_path, make, words):
        make(tmp_path / "ds")
        code, out, err = run_command("run", tmp_path / "ds", "--lake", tmp_path / "lake")
        assert code == 2
        assert words in " ".join((out + err).split())
        assert "Traceback" not in out + err
        assert len([line for line in (out + err).splitlines() if words.split()[0] in line]) == 1

    def test_a_dataset_without_dicom_does_not_affect_the_others(self, run_command, small, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty/a.txt").write_text("text")
        code, out, _ = run_command("run", tmp_path / "empty", small, "--lake", tmp_path / "lake")
        assert code == 1
        assert "none of the 1 files" in " ".join(out.split())
        assert (tmp_path / "lake/quality/ds/report.html").is_file()

    def test_a_missing_subject_stops_the_dataset_and_keeps_its_tables(self, run_command, small, tmp_path):
        run_command("run", small, "--lake", tmp_path / "lake")
        before = (tmp_path / "lake/inventory/ds.parquet").read_bytes()
        shutil.rmtree(small / "primary/sub-2")
        code, out, _ = run_command("run", small, "--lake", tmp_path / "lake")
        assert code == 1
        assert "subject sub-2 is missing" in " ".join(out.split())
        assert (tmp_path / "lake/inventory/ds.parquet").read_bytes() == before
        assert units(tmp_path / "lake") == {"sub-1", "sub-2"}
        code, _, _ = run_command("run", small, "--lake", tmp_path / "lake", "--accept-missing")
        assert code == 0
        assert units(tmp_path / "lake") == {"sub-1"}
        assert len((tmp_path / "lake/fhir/ImagingStudy/ds/0000.ndjson").read_text().splitlines()) == 1

    def test_a_held_study_ends_with_1(self, run_command, small, tmp_path):
        write_instance(small / "primary/sub-2/sam-1/3.dcm", study="1", series="1", PatientID="P-1")
        code, _, _ = run_command("run", small, "--lake", tmp_path / "lake")
        assert code == 1

    def test_an_unreadable_file_and_a_damaged_sheet_do_not_affect_the_rest(self, run_command, small, tmp_path):
        (small / "primary/sub-1/sam-1/1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 30)
        (small / "subjects.xlsx").write_bytes(b"no workbook")
        code, _, _ = run_command("run", small, "--lake", tmp_path / "lake")
        assert code == 0
        _, out, _ = run_command("explain", "ds", "sub-1", "--lake", tmp_path / "lake", "--json")
        explained = json.loads(out)
        assert [row["files"] for row in explained["Files"]] == [1, 1]
        assert {row["code"] for row in explained["Findings"]} & {
            "header-unreadable",
            "required-uid-missing",
            "header-truncated",
        }
        _, out, _ = run_command("status", "--lake", tmp_path / "lake", "--json")
        assert json.loads(out)[0]["instances"] == 3

    def test_an_unreachable_server_is_3_and_the_resources_stay(self, run_command, small, tmp_path):
        code, out, err = run_command("run", small, "--lake", tmp_path / "lake", "--fhir-url", "http://127.0.0.1:9/fhir")
        assert code == 3
        assert "127.0.0.1:9" in out + err
        assert "Traceback" not in out + err
        assert (tmp_path / "lake/fhir/Patient/ds/0000.ndjson").read_text().count("\n") == 2
        assert (tmp_path / "lake/quality/ds/report.html").is_file()

    def test_an_unknown_setting_is_one_sentence_and_2(self, run_command, tmp_path):
        (tmp_path / "s.toml").write_text("colour = 'blue'\n")
        code, _, err = run_command("run", "--settings", tmp_path / "s.toml")
        assert code == 2
        assert "colour" in err
        assert len(err.splitlines()) == 1

    def test_a_variable_that_resembles_a_setting_is_refused(self, run_command, monkeypatch):
        monkeypatch.setenv("DICOM_ETL_FHIR_URL", "https://fhir.example")

        assert run_command("doctor")[::2] == (
            2,
            "dicom-etl: environment variable DICOM_ETL_FHIR_URL is not a setting: use DICOM_ETL_FHIR__URL, "
            "with two underscores\n",
        )

    def test_a_folder_that_is_not_a_lake_is_refused(self, run_command, small, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other/thesis.txt").write_text("mine")
        code, _, err = run_command("run", small, "--lake", tmp_path / "other")
        assert code == 2
        assert "is not a lake" in err
        assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]

    def test_a_lake_that_cannot_be_created_is_one_sentence(self, run_command, small):
        code, _, err = run_command("audit", small, "--lake", "/proc/lake")

        assert code == 2
        assert err == "dicom-etl: the lake /proc/lake cannot be created: No such file or directory\n"

    def test_a_key_that_is_too_short_is_one_sentence(self, run_command, small, tmp_path, monkeypatch):
        monkeypatch.setenv("DICOM_ETL_ID_KEY", "zanzibar")
        code, out, err = run_command("run", small, "--lake", tmp_path / "lake")
        assert (code, out) == (2, "")
        assert err == (
            "dicom-etl: DICOM_ETL_ID_KEY contains a key of less than 32 bytes: make one with `openssl rand -hex 32`\n"
        )
        assert not (tmp_path / "lake").exists()

    def test_a_run_counts_errors_warnings_and_failed_checks(self, run_command, small, tmp_path):
        next(small.rglob("*.dcm")).with_name("cut.dcm").write_bytes(b"")
        code, out, _ = run_command("audit", small, "--lake", tmp_path / "lake")

        assert code == 0
        assert f"report of {small.name} (1 error, " in out


class TestSelection:
    def test_only_the_named_subject_is_extracted(self, run_command, small, tmp_path):
        _, out, _ = run_command("extract", small, "--lake", tmp_path / "lake", "--json")
        run_command("crawl", small, "--lake", tmp_path / "lake")
        _, out, _ = run_command("extract", small, "--lake", tmp_path / "lake", "--subject", "sub-1", "--json")
        assert json.loads(out)["datasets"]["ds"]["extract"]["units_processed"] == 1
        assert units(tmp_path / "lake") == {"sub-1"}

    def test_an_unknown_subject_is_refused_with_those_that_exist(self, run_command, small, tmp_path):
        command = ("audit", small, "--lake", tmp_path / "lake")
        typed = [run_command(*command, "--subject", "sub7") for _ in range(2)]  # on a new lake, and on one that has it
        code, out, _ = run_command(*command)

        assert [(code, err) for code, _, err in typed] == [
            (2, f"dicom-etl: no subject sub7 in {small.name}; existing subjects: sub-1, sub-2\n")
        ] * 2
        assert code == 0
        assert "report of" in out

    def test_a_dataset_of_the_lake_can_be_uploaded_by_its_name(self, run_command, small, tmp_path):
        lake = tmp_path / "lake"
        run_command("audit", small, "--lake", lake)
        code, out, _ = run_command("upload", small.name, "--lake", lake)

        assert (code, "no server is set" in out) == (0, True)
        assert run_command("build", small.name, "--lake", lake)[0] == 2

    def test_a_dry_run_shows_what_would_be_done_and_changes_nothing(self, run_command, small, tmp_path):
        run_command("run", small, "--lake", tmp_path / "lake")
        write_instance(small / "primary/sub-2/sam-1/9.dcm", study="2", series="2", PatientID="P-2")
        before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*.parquet"))
        code, out, _ = run_command("run", small, "--lake", tmp_path / "lake", "--dry-run", "--json")
        assert code == 0
        expected = {"dataset": "ds", "files": 5, "new": 1, "changed": 0, "missing": 0, "units_to_extract": 1}
        assert json.loads(out)["plans"] == [expected]
        assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*.parquet")) == before


class TestRebuild:
    def test_a_lake_of_an_older_schema_is_refused_until_rebuilt(self, run_command, small, tmp_path):
        lake = tmp_path / "lake"
        run_command("run", small, "--lake", lake)
        before = {path: path.read_bytes() for path in lake.rglob("*.parquet")}
        (lake / "lake.json").write_text('{"schema": 1}')
        code, out, err = run_command("run", small, "--lake", lake)
        assert (code, "`dicom-etl run --rebuild`" in " ".join((out + err).split())) == (2, True)
        code, out, err = run_command("run", small, "--lake", lake, "--rebuild", "--dry-run")
        assert (code, "choose one of them" in out + err) == (2, True)
        code, out, _ = run_command("run", small, "--lake", lake, "--rebuild")
        assert code == 0
        assert {path: path.read_bytes() for path in lake.rglob("*.parquet")} == before

    def test_a_rebuild_reads_every_file_again(self, run_command, small, tmp_path):
        run_command("run", small, "--lake", tmp_path / "lake")
        _, out, _ = run_command("audit", small, "--lake", tmp_path / "lake", "--rebuild", "--json")
        assert json.loads(out)["datasets"]["ds"]["extract"]["files_opened"] == 4

    def test_a_rebuild_keeps_the_tables_if_a_csv_file_is_refused(self, run_command, small, tmp_path):
        lake = tmp_path / "lake"
        run_command("audit", small, "--lake", lake)
        before = {path: path.read_bytes() for path in lake.rglob("*.parquet")}
        (tmp_path / "s.toml").write_text("corrections = 'corrections.csv'\n")
        (tmp_path / "corrections.csv").write_text("dataset,subject,tag,value,why\nds,sub-1,Modality,CT,wrong\n")
        code, _, err = run_command("run", small, "--lake", lake, "--rebuild", "--settings", tmp_path / "s.toml")
        assert (code, "column why is now reason" in err) == (2, True)
        assert {path: path.read_bytes() for path in lake.rglob("*.parquet")} == before

    def test_a_rebuild_keeps_the_tables_if_the_crawl_stops(self, run_command, small, tmp_path):
        lake = tmp_path / "lake"
        run_command("run", small, "--lake", lake)
        (lake / "lake.json").write_text('{"schema": 1}')
        shutil.rmtree(small / "primary/sub-2")
        code, out, _ = run_command("run", small, "--lake", lake, "--rebuild")
        assert (code, "subject sub-2 is missing" in " ".join(out.split())) == (1, True)
        assert units(lake) == {"sub-1", "sub-2"}
        assert json.loads((lake / "lake.json").read_text()) == {"schema": 1}

    def test_an_old_lake_is_only_rebuilt_with_all_of_its_datasets(self, run_command, small, tmp_path):
        lake = tmp_path / "lake"
        shutil.copytree(small, tmp_path / "other")
        run_command("run", small, tmp_path / "other", "--lake", lake)
        (lake / "lake.json").write_text('{"schema": 1}')
        code, out, err = run_command("run", small, "--lake", lake, "--rebuild")
        assert (code, "also has the datasets other: name all of its datasets" in " ".join((out + err).split())) == (
            2,
            True,
        )
        assert units(lake) == {"sub-1", "sub-2"}
        code, _, _ = run_command("run", small, tmp_path / "other", "--lake", lake, "--rebuild")
        assert code in (0, 1)
        assert json.loads((lake / "lake.json").read_text())["schema"] == 4

    def test_another_id_key_is_refused_until_the_lake_is_rebuilt(self, run_command, small, tmp_path, monkeypatch):
        lake = tmp_path / "lake"
        run_command("run", small, "--lake", lake)
        before, ids = json.loads((lake / "lake.json").read_text()), resource_ids(lake)
        monkeypatch.setenv("DICOM_ETL_ID_KEY", "k" * 32)
        code, _, err = run_command("run", small, "--lake", lake)
        assert (code, "the resource ids of the lake" in err, "`dicom-etl run --rebuild`" in err) == (2, True, True)
        assert run_command("status", "--lake", lake)[0] == 0
        assert run_command("run", small, "--lake", lake, "--rebuild")[0] == 0
        after = json.loads((lake / "lake.json").read_text())
        assert after["lake_id"] == before["lake_id"]
        assert after["id_key"] != before["id_key"]
        assert len(resource_ids(lake)) == len(ids) == 5
        assert not resource_ids(lake) & ids
        written = {path: path.stat().st_mtime_ns for path in (lake / "fhir").rglob("*.ndjson")}
        assert run_command("run", small, "--lake", lake)[0] == 0
        assert {path: path.stat().st_mtime_ns for path in (lake / "fhir").rglob("*.ndjson")} == written

    def test_a_lake_of_another_key_is_only_rebuilt_as_a_whole(self, run_command, small, tmp_path, monkeypatch):
        lake = tmp_path / "lake"
        shutil.copytree(small, tmp_path / "other")
        run_command("run", small, tmp_path / "other", "--lake", lake)
        before = (lake / "lake.json").read_bytes()
        monkeypatch.setenv("DICOM_ETL_ID_KEY", "k" * 32)
        code, out, err = run_command("run", small, "--lake", lake, "--rebuild")
        assert (code, "also has the datasets other: name all of its datasets" in " ".join((out + err).split())) == (
            2,
            True,
        )
        assert (lake / "lake.json").read_bytes() == before
        run_command("run", small, tmp_path / "other", "--lake", lake, "--rebuild")
        assert (lake / "lake.json").read_bytes() != before
        assert not {path.name for path in (lake / "fhir/Patient").iterdir()} ^ {"ds", "other"}

    def test_a_rebuild_of_some_subjects_is_refused(self, run_command, small, tmp_path):
        run_command("run", small, "--lake", tmp_path / "lake")
        code, out, err = run_command("run", small, "--lake", tmp_path / "lake", "--rebuild", "--subject", "sub-1")
        assert (code, "choose one of them" in " ".join((out + err).split())) == (2, True)
        assert units(tmp_path / "lake") == {"sub-1", "sub-2"}
