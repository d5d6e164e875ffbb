"""Everything can be run again at any moment: the same bytes, whatever happened in between."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dicom_etl.lake.locks import lock_folder
from dicom_etl.lake.tables import Lake
from tests.corpus import write_instance

HERE = Path(__file__).parent
SERIAL = {"DICOM_ETL_ENGINE": "serial"}
# what may differ between runs lies elsewhere: locks, and outcomes with their times
TABLES = ("inventory", "sheets", "layouts", "headers", "files", "identities", "fhir", "findings", "quality")


def tree(root: Path) -> Path:
    """Two subjects, three files in one and two in the other, one of them twice; a text file."""
    for number in (1, 2, 3):
        write_instance(root / "primary/sub-1/sam-1" / f"{number}.dcm", study="a", series="a", InstanceNumber=number)
    for number in (1, 2):
        write_instance(
            root / "primary/sub-2/sam-1" / f"{number}.dcm", study="b", series="b", PatientID="P-2", instance="same"
        )
    (root / "primary/sub-2/notes.dcm").write_text("no DICOM")
    return root


def run(arguments: list[str], script: list[str] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(script or ["-m", "dicom_etl.cli"]), *arguments]
    environment = {**os.environ, "DICOM_ETL_LOCK_WAIT_SECONDS": "60", **environment}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=HERE.parent, timeout=120, check=False
    )


def content(lake: Path) -> dict[str, str]:
    """The SHA-256 of every file of the tables."""
    return {
        str(file.relative_to(lake)): hashlib.sha256(file.read_bytes()).hexdigest()
        for table in TABLES
        for file in sorted((lake / table).rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], list[str]]:
    """A tree, what an undisturbed run makes of it, and the events on the way."""
    folder = tmp_path_factory.mktemp("undisturbed")
    root = tree(folder / "ds")
    events = folder / "events"
    done = run(
        ["run", str(root), "--lake", str(folder / "lake")], [str(HERE / "killed_run.py"), str(events), "-1"], **SERIAL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root, content(folder / "lake"), events.read_text().splitlines()


def moments(events: list[str]) -> dict[str, int]:
    """A dozen moments of a run, by name."""
    opened = [n for n, event in enumerate(events) if event.startswith("open primary/sub-1")]
    named = {
        "before the inventory": events.index("before lake/inventory/ds.parquet"),
        "between crawl and extract": events.index("after lake/inventory/ds.parquet"),
        "before the first file of a unit": opened[0],
        "between the files of a unit": opened[1],
        "before the layouts": events.index("before layouts/ds/sub-1.parquet"),
        "between layouts and headers": events.index("before headers/ds/sub-1.parquet"),
        "between headers and files": events.index("before files/ds/sub-1.parquet"),
        "between two units": events.index("after files/ds/sub-1.parquet"),
        "while duplicates are marked": events.index(
            "after headers/ds/sub-2.parquet", events.index("after files/ds/sub-2.parquet")
        ),
        "after the identities": events.index("after lake/identities/ds.parquet"),
        "between the resources of a unit": events.index("before ImagingStudy/ds/sub-1.ndjson"),
        "before the commit of a unit's resources": events.index("after ImagingStudy/ds/sub-2.ndjson"),
        "between measures": events.index("after quality/ds/completeness.parquet"),
        "before the report": events.index("before quality/ds/report.html"),
    }
    assert len(set(named.values())) == len(named) >= 12
    return named


MOMENTS = [
    "before the inventory",
    "between crawl and extract",
    "before the first file of a unit",
    "between the files of a unit",
    "before the layouts",
    "between layouts and headers",
    "between headers and files",
    "between two units",
    "while duplicates are marked",
    "after the identities",
    "between the resources of a unit",
    "before the commit of a unit's resources",
    "between measures",
    "before the report",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_is_completed_by_the_next(moment, undisturbed, tmp_path):
    root, expected, events = undisturbed
    arguments = ["run", str(root), "--lake", str(tmp_path / "lake")]
    script = [str(HERE / "killed_run.py"), str(tmp_path / "events"), str(moments(events)[moment])]
    killed = run(arguments, script, **SERIAL)
    assert killed.returncode == -signal.SIGKILL
    again = run(arguments, **SERIAL)
    assert again.returncode == 0, again.stdout + again.stderr
    assert content(tmp_path / "lake") == expected


def test_a_run_killed_while_workers_read_is_completed_by_the_next(tmp_path):
    root = tmp_path / "ds"
    for subject in range(8):
        for number in range(60):
            name = f"{subject}-{number}"
            write_instance(
                root / f"sub-{subject}" / f"{number}.dcm", study=str(subject), series=str(subject), instance=name
            )
    arguments = ["audit", str(root), "--workers", "2", "--lake"]
    command = [sys.executable, "-m", "dicom_etl.cli", *arguments, str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.DEVNULL)
    files = tmp_path / "killed/files/ds"
    deadline = time.monotonic() + 60
    while not (files.is_dir() and list(files.glob("*.parquet"))) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(list(files.glob("*.parquet"))) < 8, "killed too late to show anything"
    assert run([*arguments, str(tmp_path / "killed")]).returncode == 0
    assert run([*arguments, str(tmp_path / "whole")]).returncode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_serial_and_processes_give_the_same_bytes(tmp_path):
    big = tree(tmp_path / "big")
    for number in range(450):  # more than is read without worker processes
        path = big / "primary" / f"sub-x{number % 3}" / f"{number}.dcm"
        write_instance(
            path, study=f"s{number % 3}", series=f"s{number % 3}", PatientID=f"X{number % 3}", instance=str(number)
        )
    for engine in ("serial", "processes"):
        done = run(["audit", str(big), "--lake", str(tmp_path / engine), "--workers", "2"], DICOM_ETL_ENGINE=engine)
        assert done.returncode == 0, done.stderr
    assert content(tmp_path / "serial") == content(tmp_path / "processes")


def test_a_second_run_opens_no_dicom_file_and_writes_no_table(undisturbed, tmp_path):
    root, expected, _ = undisturbed
    arguments = ["run", str(root), "--lake", str(tmp_path / "lake")]
    run(arguments, **SERIAL)
    events = tmp_path / "events"
    again = run(arguments, [str(HERE / "killed_run.py"), str(events), "-1"], **SERIAL)
    assert again.returncode == 0
    happened = events.read_text().splitlines()
    assert [event for event in happened if event.startswith("open ")] == []
    written = {event.split("/")[-3].removeprefix("before ") for event in happened if event.startswith("before")}
    assert not written & {"headers", "layouts", "files", "ImagingStudy", "Patient", "Endpoint"}
    assert content(tmp_path / "lake") == expected


def test_two_runs_at_once_give_the_result_of_one(undisturbed, tmp_path):
    root, expected, _ = undisturbed
    command = [sys.executable, "-m", "dicom_etl.cli", "run", str(root), "--lake", str(tmp_path / "lake")]
    both = [
        subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.DEVNULL, env=os.environ | SERIAL) for _ in "ab"
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert content(tmp_path / "lake") == expected


def test_a_run_that_may_not_wait_says_who_holds_the_dataset(undisturbed, tmp_path):
    root, _, _ = undisturbed
    lake = Lake(str(tmp_path / "lake")).open()
    assert lock_folder(lake.root, local=True) == tmp_path / "lake/locks"
    with lake.lock("ds", "crawl of ds"):
        refused = run(["run", str(root), "--lake", lake.root, "--no-wait"], **SERIAL)
    assert refused.returncode == 1
    assert f"process {os.getpid()}" in refused.stdout
    assert "crawl of ds" in refused.stdout
    assert not (tmp_path / "lake/inventory").exists()
