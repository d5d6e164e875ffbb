"""The command `dicom-etl`, run in the process of a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dicom_etl.cli import main

RunCommand = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs `dicom-etl`: (exit code, standard output, standard error)."""
    monkeypatch.setenv("DICOM_ETL_ENGINE", "serial")
    monkeypatch.setenv("COLUMNS", "300")

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dicom-etl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return command
