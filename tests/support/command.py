"""The command `dicom-etl`, run in the process of the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dicom_etl.cli import main

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs `dicom-etl` with arguments; returns exit code, standard output and standard error."""
    monkeypatch.setenv("DICOM_ETL_ENGINE", "serial")
    monkeypatch.setenv("COLUMNS", "300")

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dicom-etl", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err

    return command
