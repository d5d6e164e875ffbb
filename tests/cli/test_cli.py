"""The command as a person meets it: exit codes, sentences, no stack traces."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dicom_etl.cli import app
from tests.support.datasets import write_instance


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for subject in (1, 2):
        for number in (1, 2):
            write_instance(
                tmp_path / f"ds/primary/sub-{subject}/sam-1/{number}.dcm",
                study=str(subject),
                series=str(subject),
                PatientID=f"P-{subject}",
            )
    return tmp_path / "ds"


def test_run_ends_with_0_and_a_report(run_command, small, tmp_path):
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
def test_a_dataset_without_dicom_is_one_sentence_and_2(run_command, tmp_path, make, words):
    make(tmp_path / "ds")
    code, out, err = run_command("run", tmp_path / "ds", "--lake", tmp_path / "lake")
    assert code == 2
    assert words in " ".join((out + err).split())
    assert "Traceback" not in out + err
    assert len([line for line in (out + err).splitlines() if words.split()[0] in line]) == 1


def test_a_dataset_without_dicom_leaves_the_others_alone(run_command, small, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").write_text("text")
    code, out, _ = run_command("run", tmp_path / "empty", small, "--lake", tmp_path / "lake")
    assert code == 1
    assert "none of the 1 files" in " ".join(out.split())
    assert (tmp_path / "lake/quality/ds/report.html").is_file()


def units(lake: Path) -> set[str]:
    """The subjects that have header rows."""
    return set(pq.read_table(lake / "headers/ds/0000.parquet", columns=["unit"])["unit"].to_pylist())


def test_a_lost_subject_stops_the_dataset_and_leaves_its_tables(run_command, small, tmp_path):
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


def test_a_held_study_ends_with_1(run_command, small, tmp_path):
    write_instance(small / "primary/sub-2/sam-1/3.dcm", study="1", series="1", PatientID="P-1")
    code, _, _ = run_command("run", small, "--lake", tmp_path / "lake")
    assert code == 1


def test_one_unreadable_file_and_one_damaged_sheet_leave_the_rest(run_command, small, tmp_path):
    (small / "primary/sub-1/sam-1/1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 30)
    (small / "subjects.xlsx").write_bytes(b"no workbook")
    code, _, _ = run_command("run", small, "--lake", tmp_path / "lake")
    assert code == 0
    _, out, _ = run_command("explain", "ds", "sub-1", "--lake", tmp_path / "lake", "--json")
    told = json.loads(out)
    assert [row["files"] for row in told["Files"]] == [1, 1]
    assert {row["code"] for row in told["Findings"]} & {"header-unreadable", "required-uid-missing", "header-truncated"}
    _, out, _ = run_command("status", "--lake", tmp_path / "lake", "--json")
    assert json.loads(out)[0]["instances"] == 3


def test_a_server_that_is_down_is_3_and_the_resources_stay(run_command, small, tmp_path):
    code, out, err = run_command("run", small, "--lake", tmp_path / "lake", "--fhir-url", "http://127.0.0.1:9/fhir")
    assert code == 3
    assert "127.0.0.1:9" in out + err
    assert "Traceback" not in out + err
    assert (tmp_path / "lake/fhir/Patient/ds/0000.ndjson").read_text().count("\n") == 2
    assert (tmp_path / "lake/quality/ds/report.html").is_file()


def test_an_unknown_setting_is_one_sentence_and_2(run_command, tmp_path):
    (tmp_path / "s.toml").write_text("colour = 'blue'\n")
    code, _, err = run_command("run", "--settings", tmp_path / "s.toml")
    assert code == 2
    assert "colour" in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_is_no_lake_is_refused(run_command, small, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    code, _, err = run_command("run", small, "--lake", tmp_path / "other")
    assert code == 2
    assert "is not a lake" in err
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_dry_run_says_what_would_be_done_and_does_nothing(run_command, small, tmp_path):
    run_command("run", small, "--lake", tmp_path / "lake")
    write_instance(small / "primary/sub-2/sam-1/9.dcm", study="2", series="2", PatientID="P-2")
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*.parquet"))
    code, out, _ = run_command("run", small, "--lake", tmp_path / "lake", "--dry-run", "--json")
    assert code == 0
    expected = {"dataset": "ds", "files": 5, "new": 1, "changed": 0, "missing": 0, "units_to_extract": 1}
    assert json.loads(out)["plans"] == [expected]
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "lake").rglob("*.parquet")) == before


def test_only_the_named_subject_is_made(run_command, small, tmp_path):
    _, out, _ = run_command("extract", small, "--lake", tmp_path / "lake", "--json")
    run_command("crawl", small, "--lake", tmp_path / "lake")
    _, out, _ = run_command("extract", small, "--lake", tmp_path / "lake", "--subject", "sub-1", "--json")
    assert json.loads(out)["datasets"]["ds"]["extract"]["units_made"] == 1
    assert units(tmp_path / "lake") == {"sub-1"}


def test_explain_of_an_unknown_subject_names_those_there_are(run_command, small, tmp_path):
    run_command("run", small, "--lake", tmp_path / "lake")
    code, _, err = run_command("explain", "ds", "sub-9", "--lake", tmp_path / "lake")
    assert code == 2
    assert "sub-1, sub-2" in err


def test_status_without_a_lake_says_so(run_command, tmp_path):
    code, _, err = run_command("status", "--lake", tmp_path / "none")
    assert code == 2
    assert "there is no lake" in err
    assert not (tmp_path / "none").exists()


def test_doctor_finds_what_is_wrong(run_command, small, tmp_path):
    (tmp_path / "s.toml").write_text(f"lake = 'l'\n[datasets.a]\nroot = '{small}'\n[datasets.b]\nroot = 'nowhere'\n")
    code, out, _ = run_command(
        "doctor", "--settings", tmp_path / "s.toml", "--fhir-url", "http://127.0.0.1:9/fhir", "--json"
    )
    checks = {check["check"]: check["ok"] for check in json.loads(out)}
    assert code == 1
    assert checks["dataset a"]
    assert not checks["dataset b"]
    assert not checks["FHIR server"]
    assert checks["lake"]


def test_example_then_run_in_it(run_command, tmp_path, monkeypatch):
    assert run_command("example", tmp_path / "demo")[0] == 0
    monkeypatch.chdir(tmp_path / "demo")
    code, out, _ = run_command("run", "--json")
    done = json.loads(out)
    assert code == 0
    assert {name: by["extract"]["rows"] for name, by in done["datasets"].items()} == {"breast": 80, "heart": 47}


def test_help_teaches_every_command():
    runner = CliRunner()
    text = runner.invoke(app, ["--help"]).output
    for command in ("run", "audit", "crawl", "extract", "build", "upload", "measure", "report", "status", "explain"):
        assert command in text
        one = runner.invoke(app, [command, "--help"])
        assert one.exit_code == 0
        assert "--lake" in one.output


def test_the_settings_are_listed_for_machines_too(run_command):
    code, out, err = run_command("doctor", "--settings-help", "--json")

    listed = {row["setting"]: row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert listed["fhir.max_concurrent_requests"]["default"] == "4"
    assert listed["datasets.NAME.root"]["meaning"]


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dicom_etl", "--help"], capture_output=True, text=True, check=False)

    assert done.returncode == 0
    assert "upload" in done.stdout


@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "raise SystemExit(130)"])  # typer makes this of it
def test_ctrl_c_has_one_answer(how):
    code = f"import dicom_etl.cli as cli, dicom_etl.__main__ as entry\ndef main(): {how}\ncli.main = main\nentry.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 130
    assert done.stderr == "dicom-etl: stopped; finished work is kept, and the next run continues from there\n"


def test_the_entry_point_is_light():
    code = "import sys, dicom_etl.__main__; print(sorted({'typer', 'pydicom', 'pyarrow', 'rich'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_subject_that_is_not_there_is_told_with_those_that_are(run_command, small, tmp_path):
    command = ("audit", small, "--lake", tmp_path / "lake")
    typed = [run_command(*command, "--subject", "sub7") for _ in range(2)]  # on a new lake, and on one that has it
    code, out, _ = run_command(*command)

    assert [(code, err) for code, _, err in typed] == [
        (2, f"dicom-etl: {small.name} has no subject sub7; there are sub-1, sub-2\n")
    ] * 2
    assert code == 0
    assert "report of" in out


def test_a_run_says_what_somebody_should_look_at(run_command, small, tmp_path):
    next(small.rglob("*.dcm")).with_name("cut.dcm").write_bytes(b"")
    code, out, _ = run_command("audit", small, "--lake", tmp_path / "lake")

    assert code == 0
    assert f"report of {small.name} (1 error, " in out


def test_what_the_lake_has_can_be_uploaded_by_its_name(run_command, small, tmp_path):
    lake = tmp_path / "lake"
    run_command("audit", small, "--lake", lake)
    code, out, _ = run_command("upload", small.name, "--lake", lake)

    assert (code, "no server is set" in out) == (0, True)
    assert run_command("build", small.name, "--lake", lake)[0] == 2


def test_a_lake_that_cannot_be_made_is_one_sentence(run_command, small):
    code, _, err = run_command("audit", small, "--lake", "/proc/lake")

    assert code == 2
    assert err == "dicom-etl: the lake /proc/lake cannot be created: No such file or directory\n"


def test_a_variable_that_is_nearly_a_setting_is_told(run_command, monkeypatch):
    monkeypatch.setenv("DICOM_ETL_FHIR_URL", "https://fhir.example")

    assert run_command("doctor")[::2] == (
        2,
        "dicom-etl: environment variable DICOM_ETL_FHIR_URL is not a setting: use DICOM_ETL_FHIR__URL, "
        "with two underscores\n",
    )


def test_a_lake_of_an_older_schema_is_refused_and_rebuilt_when_asked_for(run_command, small, tmp_path):
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


def test_a_dataset_is_read_again_when_a_rebuild_is_asked_for(run_command, small, tmp_path):
    run_command("run", small, "--lake", tmp_path / "lake")
    _, out, _ = run_command("audit", small, "--lake", tmp_path / "lake", "--rebuild", "--json")
    assert json.loads(out)["datasets"]["ds"]["extract"]["files_opened"] == 4


def test_a_rebuild_keeps_its_tables_where_the_crawl_stops(run_command, small, tmp_path):
    lake = tmp_path / "lake"
    run_command("run", small, "--lake", lake)
    (lake / "lake.json").write_text('{"schema": 1}')
    shutil.rmtree(small / "primary/sub-2")
    code, out, _ = run_command("run", small, "--lake", lake, "--rebuild")
    assert (code, "subject sub-2 is missing" in " ".join(out.split())) == (1, True)
    assert units(lake) == {"sub-1", "sub-2"}
    assert json.loads((lake / "lake.json").read_text()) == {"schema": 1}


def test_an_old_lake_is_not_rebuilt_without_all_of_its_datasets(run_command, small, tmp_path):
    lake = tmp_path / "lake"
    shutil.copytree(small, tmp_path / "other")
    run_command("run", small, tmp_path / "other", "--lake", lake)
    (lake / "lake.json").write_text('{"schema": 1}')
    code, out, err = run_command("run", small, "--lake", lake, "--rebuild")
    assert (code, "also has the datasets other: name all of its datasets" in " ".join((out + err).split())) == (2, True)
    assert units(lake) == {"sub-1", "sub-2"}
    code, _, _ = run_command("run", small, tmp_path / "other", "--lake", lake, "--rebuild")
    assert code in (0, 1)
    assert json.loads((lake / "lake.json").read_text())["schema"] == 4


def test_another_key_of_resource_ids_is_refused_until_the_lake_is_rebuilt(run_command, small, tmp_path, monkeypatch):
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


def test_a_lake_of_another_key_is_not_rebuilt_without_all_of_its_datasets(run_command, small, tmp_path, monkeypatch):
    lake = tmp_path / "lake"
    shutil.copytree(small, tmp_path / "other")
    run_command("run", small, tmp_path / "other", "--lake", lake)
    before = (lake / "lake.json").read_bytes()
    monkeypatch.setenv("DICOM_ETL_ID_KEY", "k" * 32)
    code, out, err = run_command("run", small, "--lake", lake, "--rebuild")
    assert (code, "also has the datasets other: name all of its datasets" in " ".join((out + err).split())) == (2, True)
    assert (lake / "lake.json").read_bytes() == before
    run_command("run", small, tmp_path / "other", "--lake", lake, "--rebuild")
    assert (lake / "lake.json").read_bytes() != before
    assert not {path.name for path in (lake / "fhir/Patient").iterdir()} ^ {"ds", "other"}


def resource_ids(lake):
    """The ids of all resources of the lake."""
    lines = [line for path in lake.glob("fhir/*/ds/*.ndjson") for line in path.read_text().splitlines()]
    return {json.loads(line)["id"] for line in lines}


def test_a_key_that_is_too_short_is_one_sentence(run_command, small, tmp_path, monkeypatch):
    monkeypatch.setenv("DICOM_ETL_ID_KEY", "zanzibar")
    code, out, err = run_command("run", small, "--lake", tmp_path / "lake")
    assert (code, out) == (2, "")
    assert err == (
        "dicom-etl: DICOM_ETL_ID_KEY contains a key of less than 32 bytes: make one with `openssl rand -hex 32`\n"
    )
    assert not (tmp_path / "lake").exists()


def test_doctor_says_whether_ids_can_be_guessed_and_whether_the_lake_has_the_key(
    run_command, small, tmp_path, monkeypatch
):
    file = tmp_path / "id-key"
    (tmp_path / "s.toml").write_text("lake = 'lake'\nid_key_file = 'id-key'\n")

    def checks(*arguments):
        code, out, _ = run_command("doctor", "--json", *arguments)
        return code, {check["check"]: (check["ok"], check["result"]) for check in json.loads(out)}

    code, told = checks("--lake", tmp_path / "lake")
    assert (code, told["resource ids"][0]) == (0, True)
    assert told["resource ids"][1].startswith("warning: the key is derived from `namespace`, so that anyone who knows")
    assert "`openssl rand -hex 32`" in told["resource ids"][1]
    run_command("run", small, "--lake", tmp_path / "lake")

    code, told = checks("--settings", tmp_path / "s.toml")
    assert (code, told["resource ids"]) == (1, (False, f"id_key_file {file} cannot be read: No such file or directory"))
    file.write_bytes(b"k" * 32)
    file.chmod(0o640)
    code, told = checks("--settings", tmp_path / "s.toml")
    assert told["resource ids"] == (
        True,
        "key 82faad1c93751e3c (fingerprint); all lakes of the namespace https://dicom-etl.local must share this key",
    )
    assert (code, told["lake"][0]) == (1, False)
    assert "were made with the key 577b5d77c4253d5d, not with the configured key 82faad1c93751e3c" in told["lake"][1]
    assert "secrets" not in told
    file.chmod(0o644)
    assert checks("--settings", tmp_path / "s.toml")[1]["secrets"] == (
        True,
        f"warning: id_key_file {file} can be read by everybody: chmod o-r",
    )


def test_a_rebuild_of_some_subjects_is_refused(run_command, small, tmp_path):
    run_command("run", small, "--lake", tmp_path / "lake")
    code, out, err = run_command("run", small, "--lake", tmp_path / "lake", "--rebuild", "--subject", "sub-1")
    assert (code, "choose one of them" in " ".join((out + err).split())) == (2, True)
    assert units(tmp_path / "lake") == {"sub-1", "sub-2"}
