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
TABLES = ("inventory", "sheets", "tag_profiles", "headers", "files", "identities", "fhir", "findings", "quality")


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
        "before the tag_profiles": events.index("before tag_profiles/ds/sub-1.parquet"),
        "between tag_profiles and headers": events.index("before headers/ds/sub-1.parquet"),
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
    "before the tag_profiles",
    "between tag_profiles and headers",
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


CHUNKED = {**SERIAL, "CHUNK_FILES": "4"}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], list[str]]:
    """A tree with a unit of ten files, what a run that reads it in chunks of four makes of it, and the events."""
    folder = tmp_path_factory.mktemp("large")
    root = tree(folder / "ds")
    for number in range(10):
        path = root / f"primary/sub-0/sam-{number // 3}/{number}.dcm"
        write_instance(path, study="c", series=f"c-{number // 3}", PatientID="P-0", InstanceNumber=number)
    done = run(
        ["run", str(root), "--lake", str(folder / "lake")],
        [str(HERE / "killed_run.py"), str(folder / "e"), "-1"],
        **CHUNKED,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root, content(folder / "lake"), (folder / "e").read_text().splitlines()


def large_moments(events: list[str]) -> dict[str, int]:
    """Moments of reading and joining a large unit, by name."""
    parts = [n for n, event in enumerate(events) if event.startswith("after ") and event.endswith(".arrow")]
    opened = [n for n, event in enumerate(events) if event.startswith("open primary/sub-0")]
    named = {
        "while the second chunk is read": opened[4],
        "between the parts of a chunk": parts[1],
        "between two chunks": parts[3],
        "before the last part": parts[-1] - 1,
        "after the last chunk": parts[-1],
        "before the join": events.index("before extract/ds/sub-0.parquet"),
        "before the joined headers": events.index("before headers/ds/sub-0.parquet"),
        "between joined headers and files": events.index("after headers/ds/sub-0.parquet"),
        "after the joined files": events.index("after files/ds/sub-0.parquet"),
    }
    assert len(parts) == 4 * 3  # headers, files, tag profiles and findings of three chunks
    assert len(set(named.values())) == len(named)
    return named


LARGE_MOMENTS = [
    "while the second chunk is read",
    "between the parts of a chunk",
    "between two chunks",
    "before the last part",
    "after the last chunk",
    "before the join",
    "before the joined headers",
    "between joined headers and files",
    "after the joined files",
]


@pytest.mark.parametrize("moment", LARGE_MOMENTS)
def test_a_large_unit_killed_at_any_moment_is_completed_by_the_next_run(moment, large, tmp_path):
    root, expected, events = large
    arguments = ["run", str(root), "--lake", str(tmp_path / "lake")]
    script = str(HERE / "killed_run.py")
    killed = run(arguments, [script, str(tmp_path / "events"), str(large_moments(events)[moment])], **CHUNKED)
    assert killed.returncode == -signal.SIGKILL
    again = run(arguments, [script, str(tmp_path / "events"), "-1"], **CHUNKED)
    assert again.returncode == 0, again.stdout + again.stderr
    assert content(tmp_path / "lake") == expected
    assert [path.name for path in (tmp_path / "lake").rglob(".*")] == []


def test_a_run_killed_while_workers_read_chunks_is_completed_by_the_next(tmp_path):
    root = tmp_path / "ds"
    for number in range(450):
        write_instance(root / f"sub-1/{number // 30:02}/{number}.dcm", study="1", series=str(number // 30))
    arguments = ["audit", str(root), "--workers", "2", "--lake"]
    script = [str(HERE / "killed_run.py"), str(tmp_path / "events"), "-1"]
    command = [sys.executable, *script, *arguments, str(tmp_path / "killed")]
    process = subprocess.Popen(
        command, cwd=HERE.parent, stdout=subprocess.DEVNULL, env=os.environ | {"CHUNK_FILES": "30", "FEW_FILES": "0"}
    )
    headers = tmp_path / "killed/headers/ds"
    deadline = time.monotonic() + 60
    while not list(headers.glob(".*.parts/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (headers / "sub-1.parquet").exists(), "killed too late to show anything"
    assert run([*arguments, str(tmp_path / "killed")]).returncode == 0
    assert run([*arguments, str(tmp_path / "whole")]).returncode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_run_killed_while_workers_read_is_completed_by_the_next(tmp_path):
    root = tmp_path / "ds"
    for subject in range(8):
        for number in range(60):
            name = f"{subject}-{number}"
            write_instance(
                root / f"sub-{subject}" / f"{number}.dcm", study=str(subject), series=str(subject), instance=name
            )
    arguments = ["audit", str(root), "--workers", "2", "--lake"]
    script = [str(HERE / "killed_run.py"), str(tmp_path / "events"), "-1"]
    command = [sys.executable, *script, *arguments, str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.DEVNULL, env=os.environ | {"FEW_FILES": "0"})
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


def test_all_engines_give_the_same_bytes(tmp_path, dask_cluster):
    big = tree(tmp_path / "big")
    for number in range(450):  # sub-x0 is read in chunks
        subject = max(number % 5 - 1, 0)
        path = big / "primary" / f"sub-x{subject}" / f"{number % 7}" / f"{number}.dcm"
        write_instance(path, study=f"s{subject}", series=f"s{subject}-{number % 7}", PatientID=f"X{subject}")
    script = [str(HERE / "killed_run.py"), str(tmp_path / "events"), "-1"]
    for engine in ("serial", "processes", "dask"):
        arguments = ["audit", str(big), "--lake", str(tmp_path / engine), "--workers", "2", "--engine", engine]
        done = run(arguments, script, CHUNK_FILES="100", FEW_FILES="0", DICOM_ETL_SCHEDULER=dask_cluster.address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "join big" in done.stdout
    assert content(tmp_path / "serial") == content(tmp_path / "processes") == content(tmp_path / "dask")


def test_a_run_whose_scheduler_does_not_answer_says_so_and_the_next_one_completes_it(tmp_path):
    root = tmp_path / "ds"
    for number in range(8):
        write_instance(root / f"sub-{number % 4}/{number}.dcm", study=str(number % 4), series=str(number % 4))
    arguments = ["audit", str(root), "--lake", str(tmp_path / "lake"), "--engine"]
    script = [str(HERE / "killed_run.py"), str(tmp_path / "events"), "-1"]
    failed = run([*arguments, "dask"], script, DICOM_ETL_SCHEDULER="tcp://127.0.0.1:1", FEW_FILES="0")
    assert failed.returncode == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr
    assert run([*arguments, "serial"]).returncode == 0


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
    assert not written & {"headers", "tag_profiles", "files", "ImagingStudy", "Patient", "Endpoint"}
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
