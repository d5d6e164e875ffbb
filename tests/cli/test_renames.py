"""Names of earlier versions are refused with the names of this one, and nothing is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import RunCommand


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["outcomes"], "command outcomes is now uploads"),
        (["forget", "ds", "sub-1"], "command forget is now withdraw"),
        (["run", "--accept-vanished"], "option --accept-vanished is now --accept-missing"),
        (["withdraw", "ds", "--readmit"], "option --readmit is now --undo"),
        (["findings", "ds", "--code", "junk-skipped"], "finding code junk-skipped is now system-files-skipped"),
        (["findings", "ds", "--code", "patient-on-server"], "finding code patient-on-server is now patient-conflict"),
        (["uploads", "--state", "gave-up"], "state gave-up is now failed"),
    ],
)
def test_an_old_name_on_the_command_line_is_refused(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(*arguments) == (2, "", f"dicom-etl: {sentence}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_old_option_after_two_dashes_is_an_argument(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = run_command("crawl", "--", "--accept-vanished")
    assert (code, "is now" in error, error.startswith("dicom-etl: --accept-vanished is")) == (2, False, True)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('site = "https://a.example"', "setting site is now namespace"),
        ('as_of = "2024-01-01"', "setting as_of is now reference_date"),
        ("[fhir]\nin_flight = 2", "setting fhir.in_flight is now fhir.max_concurrent_requests"),
        ('[fhir]\nforeign_studies = "hold"', "setting fhir.foreign_studies is now fhir.existing_study"),
    ],
)
def test_an_old_setting_in_a_file_is_refused(
    run_command: RunCommand, tmp_path: Path, content: str, sentence: str
) -> None:
    file = tmp_path / "my.toml"
    file.write_text(content)
    message = f"dicom-etl: {sentence}: rename it in {file}\n"
    assert run_command("status", "--settings", file) == (2, "", message)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DICOM_ETL_SITE", "DICOM_ETL_NAMESPACE"),
        ("DICOM_ETL_WATCH", "DICOM_ETL_WATCH_FOLDERS"),
        ("DICOM_ETL_FHIR__USER", "DICOM_ETL_FHIR__USERNAME"),
    ],
)
def test_an_old_environment_variable_is_refused(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.setenv(old, "x")
    assert run_command("status") == (2, "", f"dicom-etl: environment variable {old} is now {new}\n")
