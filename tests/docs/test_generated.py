"""The generated parts of the documentation are current, and what pages mention exists."""

import re
import subprocess
import sys

import pytest

from dicom_etl.cli.app import SUBCOMMANDS
from tests.docs.pages import PAGES, ROOT, name_page


def test_generated_parts_are_current() -> None:
    script = [sys.executable, str(ROOT / "scripts/docs_tables.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_commands_on_a_page_exist(page) -> None:
    mentioned = re.findall(r"(?:^|`|\(|&& )dicom-etl ([a-z]+)\b", page.read_text(encoding="utf-8"), re.MULTILINE)
    former = {"forget"} if page.name == "upgrade-a-lake.md" else set()
    assert set(mentioned) - former <= SUBCOMMANDS.keys()


def test_the_readme_mentions_the_first_commands() -> None:
    mentioned = set(re.findall(r"dicom-etl ([a-z]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"doctor", "audit", "run", "status", "convert"} <= mentioned


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_make_targets_on_a_page_exist(page) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(encoding="utf-8"))) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_links_lead_to_files(page) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
