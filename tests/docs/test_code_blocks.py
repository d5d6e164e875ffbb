"""The code blocks of the documentation run: commands, Python, SQL, settings and CSV files.

The blocks of a page run one after the other in a copy of the example datasets after `dicom-etl audit`. Pages about
uploads have a real FHIR server.
"""

import contextlib
import io
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from dicom_etl.cli.app import main
from dicom_etl.examples import write_examples
from dicom_etl.fhir.corrections import read_corrections
from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.settings import load_settings
from tests.docs.pages import PAGES, ROOT, CodeBlock, find_code_blocks, name_page
from tests.servers.hapi_server import HapiServer

LANGUAGES = {"sh", "python", "sql", "toml", "csv", ""}  # blocks without a language are shown, not run
WITH_SERVER = {"tutorial.md", "verify-the-server.md", "use-from-python.md"}
QUERIES = "query-the-fhir-server.md"
DOCUMENTED_URL = "http://127.0.0.1:8095/fhir"
# Commands that are shown and not run here: they install software, start a server that does not end, or belong to a
# shell session.
NOT_RUN = {"make", "pip", "python3", ".", "export", "cd", "openssl", "chmod", "sqlite3"}


def _select(language: str) -> list[Path]:
    """The pages that have blocks of a language."""
    return [page for page in PAGES if any(block.language == language for block in find_code_blocks(page))]


def _run(*arguments: str) -> tuple[int, str]:
    """Run `dicom-etl` in this process: exit code and output."""
    output = io.BytesIO()
    stream = io.TextIOWrapper(output, encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dicom-etl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), output.getvalue().decode()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example datasets, audited, and a key of resource ids."""
    folder = tmp_path_factory.mktemp("docs") / "demo"
    write_examples(folder)
    (folder / "dicom-etl-id-key").write_text("0123456789abcdef" * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DICOM_ETL_ENGINE", "serial")
        patch.chdir(folder)
        code, output = _run("audit")
    assert code == 0, output
    return folder


@pytest.fixture
def workspace(examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the examples for one page, as the current folder."""
    folder = tmp_path / "demo"
    shutil.copytree(examples, folder, symlinks=True)
    monkeypatch.setenv("DICOM_ETL_ENGINE", "serial")
    monkeypatch.chdir(folder)
    return folder


def _load_into(server: HapiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upload the examples to an empty server."""
    monkeypatch.setenv("DICOM_ETL_FHIR__URL", server.base_url)
    code, output = _run("run")
    assert code == 0, output


def _find_commands(block: CodeBlock) -> Iterator[list[str]]:
    for line in block.code.splitlines():
        for command in line.split(" && "):
            if words := shlex.split(command, comments=True):
                yield words


def _run_python(page: Path, names: dict[str, Any]) -> None:
    for block in find_code_blocks(page):
        if block.language == "python":
            exec(compile(block.code, f"{page}:{block.line}", "exec"), names)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("page", _select("sh"), ids=name_page)
def test_commands_run(page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in WITH_SERVER:
        _load_into(request.getfixturevalue("empty_hapi"), monkeypatch)
    for block in find_code_blocks(page):
        for program, *words in _find_commands(block) if block.language == "sh" else ():
            where = f"{name_page(page)}:{block.line}: {program} {' '.join(words)}"
            if program != "dicom-etl":
                assert program in NOT_RUN, where
                continue
            url = os.environ.get("DICOM_ETL_FHIR__URL", DOCUMENTED_URL)
            code, output = _run(*[url if word == DOCUMENTED_URL else word for word in words])
            assert code == 0, f"{where}\n{output}"


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("page", [page for page in _select("python") if page.name != QUERIES], ids=name_page)
def test_python_runs(page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in WITH_SERVER:
        _load_into(request.getfixturevalue("empty_hapi"), monkeypatch)
    _run_python(page, {})


@pytest.mark.usefixtures("workspace")
def test_queries_to_the_fhir_server_return_resources(empty_hapi: HapiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs/how-to" / QUERIES
    _load_into(empty_hapi, monkeypatch)
    names: dict[str, Any] = {"FHIR_URL": empty_hapi.base_url}
    _run_python(page, names)
    assert len(names["studies"]) == 4
    assert names["datasets"] == {"breast", "heart"}
    assert len(names["breasts"]) == 6  # two by their headers, four by the samples sheet
    assert names["study"]["id"] == names["studies"][0]["id"]


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("page", _select("sql"), ids=name_page)
def test_sql_returns_rows(page: Path) -> None:
    for block in find_code_blocks(page):
        for query in block.code.split(";\n") if block.language == "sql" else ():
            if query.strip():
                assert duckdb.sql(query).fetchall(), f"{name_page(page)}:{block.line}"


@pytest.mark.parametrize("page", _select("toml"), ids=name_page)
def test_settings_are_accepted(page: Path, tmp_path: Path) -> None:
    for block in find_code_blocks(page):
        if block.language == "toml":
            file = tmp_path / "dicom-etl.toml"
            file.write_text(block.code, encoding="utf-8")
            assert load_settings(file) is not None


@pytest.mark.parametrize("page", _select("csv"), ids=name_page)
def test_csv_files_are_read(page: Path, tmp_path: Path) -> None:
    for block in find_code_blocks(page):
        if block.language == "csv":
            file = tmp_path / "lines.csv"
            file.write_text(block.code, encoding="utf-8")
            read = read_crosswalk if "system" in block.code.splitlines()[0] else read_corrections
            assert len(list(read(str(file)))) == len(block.code.strip().splitlines()) - 1


def test_blocks_name_their_language() -> None:
    blocks = [(name_page(page), block) for page in PAGES for block in find_code_blocks(page)]
    assert [(page, block.line) for page, block in blocks if block.language not in LANGUAGES] == []
    counts = Counter(block.language for _page, block in blocks)
    assert counts["sh"] > 25
    assert counts["python"] > 6
    assert counts["sql"] > 3


def test_blocks_are_found_in_lists_too(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("1. Do\n\n    ```sh\n    echo 1\n    ```\n\n```\nplain\n```\n")
    assert [(block.language, block.code, block.line) for block in find_code_blocks(page)] == [
        ("sh", "echo 1\n", 4),
        ("", "plain\n", 8),
    ]
