"""What a command imports: only what it needs, so that it starts fast and in little memory."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from dicom_etl.cli.app import SUBCOMMANDS
from tests.support.datasets import write_instance

DATA = ("pandas", "numpy", "pyarrow", "duckdb", "sqlalchemy", "pydicom", "openpyxl", "jinja2", "fsspec", "distributed")
CLIENT = ("aiohttp", "fhirpy", "tenacity")

RUN_COMMANDS = """
import sys
from dicom_etl.__main__ import main
for arguments in {commands!r}:
    sys.argv = ["dicom-etl", *arguments]
    try:
        main()
    except SystemExit as end:
        assert (end.code or 0) in {codes!r}, (arguments, end.code)
print("imported:", *[name for name in {watched!r} if name in sys.modules])
"""


def imported(
    folder: Path, *commands: tuple[str, ...], watched: tuple[str, ...], codes: tuple[int, ...] = (0,)
) -> list[str]:
    """Those of the watched modules that a process has imported after these commands."""
    code = RUN_COMMANDS.format(commands=commands, codes=codes, watched=watched)
    process = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1].split()[1:]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("DICOM_ETL_ENGINE", "serial")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_no_subcommand_and_no_settings(tmp_path: Path, option: str) -> None:
    subcommands = tuple(f"dicom_etl.cli.{subcommand.module}" for subcommand in SUBCOMMANDS.values())
    watched = (*DATA, *CLIENT, *subcommands, "rich", "pydantic", "dicom_etl.settings", "dicom_etl.pipeline", "asyncio")
    assert imported(tmp_path, (option,), watched=watched) == []


def test_status_of_a_folder_without_a_lake_imports_no_tables(tmp_path: Path) -> None:
    watched = (*DATA, *CLIENT, "rich", "dicom_etl.lake.tables", "dicom_etl.pipeline")
    assert imported(tmp_path, ("status",), watched=watched, codes=(2,)) == []


def test_commands_without_a_server_import_no_http_client(tmp_path: Path) -> None:
    for number in (1, 2):
        write_instance(tmp_path / f"ds/primary/sub-1/sam-1/{number}.dcm", study="1", series="1", PatientID="P")
    stages = [(stage, "ds") for stage in ("crawl", "extract", "build", "measure", "report")]
    views = [("status",), ("uploads",), ("explain", "ds", "sub-1"), ("completeness", "ds"), ("findings", "ds")]
    commands = [*stages, *views, ("crawl", "ds", "--dry-run"), ("doctor",), ("convert", "ds")]
    assert imported(tmp_path, *commands, watched=(*CLIENT, "pandas", "openpyxl"), codes=(0, 1)) == []


def test_crawl_imports_neither_the_other_stages_nor_a_database(tmp_path: Path) -> None:
    write_instance(tmp_path / "ds/primary/sub-1/sam-1/1.dcm", study="1", series="1", PatientID="P")
    stages = tuple(f"dicom_etl.stages.{stage}" for stage in ("extract", "build", "upload", "measure", "report"))
    assert imported(tmp_path, ("crawl", "ds"), watched=(*stages, "duckdb", "sqlalchemy", "jinja2")) == []


def test_worker_processes_of_the_command_import_no_pandas(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "import pyarrow as pa\n"
        "import dicom_etl.__main__\n"
        "from dicom_etl.engine import Engine\n"
        "def probe(item):\n"
        "    return len(pa.array([item])) == 1 and 'pandas' in sys.modules\n"
        "if __name__ == '__main__':\n"
        "    print([result.value for result in Engine('processes', 2).map(probe, [1, 2])])\n"
    )
    process = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.stdout == "[False, False]\n", process.stderr


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_help_of_a_subcommand_is_the_first_line_of_its_docstring(name: str) -> None:
    function = getattr(import_module(f"dicom_etl.cli.{SUBCOMMANDS[name].module}"), name)
    assert SUBCOMMANDS[name].help == (function.__doc__ or "").splitlines()[0]


def test_every_module_of_subcommands_is_listed() -> None:
    folder = Path(import_module("dicom_etl.cli").__path__[0])
    shared = {"app", "execution", "export", "options", "output", "results", "session"}
    modules = {path.stem for path in folder.glob("[a-z]*.py")} - shared
    assert modules == {subcommand.module for subcommand in SUBCOMMANDS.values()}
    public = {
        node.name
        for module in modules
        for node in ast.parse((folder / f"{module}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert public == set(SUBCOMMANDS)
