"""What the documents say is true: generated tables are current, names exist, queries run."""

import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from dicom_etl.cli import app
from dicom_etl.examples import write_examples
from dicom_etl.pipeline import STAGES, Pipeline, run
from dicom_etl.settings import load_settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_generated_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/docs_tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_commands_in_the_readme_exist():
    named = set(re.findall(r"dicom-etl ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert {"audit", "run", "status", "explain", "example", "doctor"} <= named
    assert named <= known


def test_the_queries_of_the_readme_run_on_the_examples(tmp_path, monkeypatch):
    settings = load_settings(write_examples(tmp_path / "demo").settings_file, engine="serial")
    stages = [stage for stage in STAGES if stage != "upload"]
    assert run(Pipeline(settings), ["breast", "heart"], stages).exit_code == 0
    monkeypatch.chdir(tmp_path / "demo")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [sql] = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    scanners, lacking = (duckdb.sql(query).df() for query in sql.split(";\n") if query.strip())
    assert scanners["instances"].sum() == 126
    assert len(lacking) > 5
    converting, asking = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    said: dict = {}
    exec(converting.replace("/data/scan", str(tmp_path / "demo/breast")), said)
    (studies,) = duckdb.sql("select count(distinct StudyInstanceUID) from 'lake/headers/breast/*.parquet'").fetchall()
    assert (len(said["studies"]),) == studies
    assert all(study["contained"][0]["resourceType"] == "Patient" for study in said["studies"])
    exec(asking, said)
    errors = said["findings"][said["findings"].severity == "error"]
    assert isinstance(errors, pd.DataFrame)
    for file in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE):
        pattern = re.sub(r"<[a-z]+>", "*", file).replace("...", "*")
        if not pattern.startswith("upload_ledger"):
            assert list((tmp_path / "demo/lake").glob(pattern)), file
