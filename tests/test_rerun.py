"""Every run can be repeated at any moment, also after a kill, and gives the same bytes."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dicom_etl.lake.locks import choose_lock_folder
from dicom_etl.lake.tables import Lake
from tests.support.datasets import write_instance

ROOT = Path(__file__).parents[1]
KILLED_RUN = ("-m", "tests.support.killed_run")
SERIAL = {"DICOM_ETL_ENGINE": "serial"}
# locks and the table of the upload ledger, which contains times, may differ between runs
TABLES = (
    "inventory",
    "sheets",
    "headers",
    "tag_profiles",
    "files",
    "identities",
    "fhir",
    "fhir_elements",
    "findings",
    "commits",
    "quality",
)
# three shards of units that are read in chunks of four files at most
SHARDED = {**SERIAL, "SHARD_ROWS": "3", "CHUNK_FILES": "4"}


def write_dataset(root: Path) -> Path:
    """Five subjects of two or three files, one of them twice; a text file."""
    for number in (1, 2, 3):
        write_instance(root / "primary/sub-1/sam-1" / f"{number}.dcm", study="a", series="a", InstanceNumber=number)
    for number in (1, 2):
        write_instance(
            root / "primary/sub-2/sam-1" / f"{number}.dcm", study="b", series="b", PatientID="P-2", instance="same"
        )
    (root / "primary/sub-2/notes.dcm").write_text("no DICOM")
    for subject in ("3", "4", "5"):
        for number in (1, 2):
            path = root / f"primary/sub-{subject}/sam-1/{number}.dcm"
            more = {"PatientID": f"P-{subject}", "InstanceNumber": number, "instance": f"{subject}-{number}"}
            write_instance(path, study=f"t{subject}", series=f"t{subject}", **more)
    return root


def run(arguments: list[str], script: list[str] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(script or ["-m", "dicom_etl.cli"]), *arguments]
    environment = {**os.environ, "DICOM_ETL_LOCK_WAIT_SECONDS": "60", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=False)


def hash_tables(lake: Path) -> dict[str, str]:
    """The SHA-256 of every file of the tables."""
    return {
        str(file.relative_to(lake)): hashlib.sha256(file.read_bytes()).hexdigest()
        for table in TABLES
        for file in sorted((lake / table).rglob("*"))
        if file.is_file()
    }


def run_killable(events: Path, when: int, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A run that kills itself at the event of a number; -1: it writes the list of events."""
    return run(arguments, [*KILLED_RUN, str(events), str(when)], **environment)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], list[str]]:
    """A dataset, the tables of an undisturbed run, and the events of that run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    root = write_dataset(folder / "ds")
    done = run_killable(folder / "events", -1, ["run", str(root), "--lake", str(folder / "lake")], **SHARDED)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, hash_tables(folder / "lake"), (folder / "events").read_text().splitlines()


def name_moments(events: list[str]) -> dict[str, int]:
    """Moments of a run, by name."""
    opened = [n for n, event in enumerate(events) if event.startswith("open primary/")]
    read = [n for n, event in enumerate(events) if event.startswith("after .chunks/extract") and "done" in event]
    built = [n for n, event in enumerate(events) if event.startswith("after .chunks/build") and "done" in event]
    named = {
        "before the inventory": events.index("before inventory/ds.parquet"),
        "between crawl and extract": events.index("after inventory/ds.parquet"),
        "before the first file": opened[0],
        "between the files of a chunk": opened[1],
        "between the tables of a chunk": read[0] - 3,
        "between two chunks": read[0],
        "while duplicates are compared": opened[-1],
        "before the pending commit of a shard": events.index("before commits/extract/ds/.0000.parquet.pending"),
        "after the pending commit of a shard": events.index("after commits/extract/ds/.0000.parquet.pending"),
        "between the findings and the headers of a shard": events.index("after findings/extract/ds/0000.parquet"),
        "between the headers and the files of a shard": events.index("after headers/ds/0000.parquet"),
        "between the files and the tag profiles of a shard": events.index("after files/ds/0000.parquet"),
        "before the commit of a shard": events.index("before commits/extract/ds/0000.parquet"),
        "between two shards": events.index("after commits/extract/ds/0000.parquet"),
        "between the files of the last shard": events.index("after headers/ds/0003.parquet"),
        "before the findings of the extraction": events.index("before findings/extract/ds/dataset.parquet"),
        "after the identities": events.index("after identities/ds.parquet"),
        "after the Endpoint": events.index("after fhir/Endpoint/ds/0000.ndjson"),
        "between two chunks of the build": built[0],
        "after the pending commit of resources": events.index("after commits/build/ds/.0000.parquet.pending"),
        "between the files of a shard of resources": events.index("after fhir/Patient/ds/0000.ndjson"),
        "before the commit of a shard of resources": events.index("before commits/build/ds/0000.parquet"),
        "between two shards of resources": events.index("after commits/build/ds/0000.parquet"),
        "before the findings of the build": events.index("before findings/build/ds/dataset.parquet"),
        "between measures": events.index("after quality/ds/completeness.parquet"),
        "before the report": events.index("before quality/ds/report.html"),
    }
    assert list(named) == MOMENTS
    assert len(set(named.values())) == len(named)
    return named


MOMENTS = [
    "before the inventory",
    "between crawl and extract",
    "before the first file",
    "between the files of a chunk",
    "between the tables of a chunk",
    "between two chunks",
    "while duplicates are compared",
    "before the pending commit of a shard",
    "after the pending commit of a shard",
    "between the findings and the headers of a shard",
    "between the headers and the files of a shard",
    "between the files and the tag profiles of a shard",
    "before the commit of a shard",
    "between two shards",
    "between the files of the last shard",
    "before the findings of the extraction",
    "after the identities",
    "after the Endpoint",
    "between two chunks of the build",
    "after the pending commit of resources",
    "between the files of a shard of resources",
    "before the commit of a shard of resources",
    "between two shards of resources",
    "before the findings of the build",
    "between measures",
    "before the report",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_is_completed_by_the_next(moment, undisturbed, tmp_path):
    root, expected, events = undisturbed
    when = name_moments(events)[moment]
    arguments = ["run", str(root), "--lake", str(tmp_path / "lake")]
    assert run_killable(tmp_path / "events", when, arguments, **SHARDED).returncode == -signal.SIGKILL
    again = run_killable(tmp_path / "events", -1, arguments, **SHARDED)
    assert again.returncode == 0, again.stdout + again.stderr
    assert hash_tables(tmp_path / "lake") == expected
    # the files of finished chunks are not read again
    finished = [n for n, event in enumerate(events) if event.startswith("after .chunks/extract") and "done" in event]
    before_kill = [number for number in finished if number < when]
    kept = sum(event.startswith("open ") for event in events[: before_kill[-1]]) if before_kill else 0
    opened = [event for event in (tmp_path / "events").read_text().splitlines() if event.startswith("open ")]
    total = sum(event.startswith("open ") for event in events[: finished[-1]])
    assert len([event for event in opened if event not in DUPLICATES]) <= total - kept


DUPLICATES = ("open primary/sub-2/sam-1/1.dcm", "open primary/sub-2/sam-1/2.dcm")  # also read for their checksums


def name_exchange_moments(events: list[str]) -> dict[str, int]:
    """Moments of an exchange of folders, when the number of shards changes, by name."""
    return {
        "before the exchange of extract": events.index("before commits/extract/.ds.exchange"),
        "before the first folder": events.index("after commits/extract/.ds.exchange"),
        "between the old and the new folder": events.index("after .moving/old/headers/ds"),
        "between two folders": events.index("after headers/ds"),
        "before the folder of commits": events.index("before .moving/old/commits/extract/ds"),
        "after the folder of commits": events.index("after commits/extract/ds"),
        "between two folders of resources": events.index("after fhir/Patient/ds"),
        "after the folder of commits of resources": events.index("after commits/build/ds"),
    }


EXCHANGE_MOMENTS = [
    "before the exchange of extract",
    "before the first folder",
    "between the old and the new folder",
    "between two folders",
    "before the folder of commits",
    "after the folder of commits",
    "between two folders of resources",
    "after the folder of commits of resources",
]


@pytest.fixture(scope="module")
def fewer_shards(undisturbed, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], list[str]]:
    """The tables after a run with one shard over a lake of three shards, and the events of that run."""
    folder = tmp_path_factory.mktemp("run")
    arguments = ["run", str(undisturbed[0]), "--lake", str(folder / "run/lake")]
    assert run_killable(folder / "events", -1, arguments, **SHARDED).returncode == 0
    assert run_killable(folder / "events", -1, arguments, **SERIAL).returncode == 0
    return hash_tables(folder / "run/lake"), (folder / "events").read_text().splitlines()


@pytest.mark.parametrize("moment", EXCHANGE_MOMENTS)
def test_a_run_killed_while_rows_change_shards_is_completed(moment, undisturbed, fewer_shards, tmp_path):
    expected, events = fewer_shards
    assert list(name_exchange_moments(events)) == EXCHANGE_MOMENTS
    arguments = ["run", str(undisturbed[0]), "--lake", str(tmp_path / "run/lake")]
    assert run_killable(tmp_path / "events", -1, arguments, **SHARDED).returncode == 0
    killed = run_killable(tmp_path / "events", name_exchange_moments(events)[moment], arguments, **SERIAL)
    assert killed.returncode == -signal.SIGKILL
    assert run_killable(tmp_path / "events", -1, arguments, **SERIAL).returncode == 0
    assert hash_tables(tmp_path / "run/lake") == expected
    opened = [event for event in (tmp_path / "events").read_text().splitlines() if event.startswith("open ")]
    assert opened == []


def test_a_lake_with_fewer_shards_equals_a_new_one(undisturbed, fewer_shards, tmp_path):
    arguments = ["run", str(undisturbed[0]), "--lake", str(tmp_path / "lake")]
    assert run(arguments, **SERIAL).returncode == 0
    assert hash_tables(tmp_path / "lake") == fewer_shards[0]


CHUNKED = {**SERIAL, "CHUNK_FILES": "4"}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], list[str]]:
    """A dataset with a unit of ten files, the tables of a run that reads it in chunks of four, and its events."""
    folder = tmp_path_factory.mktemp("large")
    root = write_dataset(folder / "ds")
    for number in range(10):
        path = root / f"primary/sub-0/sam-{number // 3}/{number}.dcm"
        write_instance(path, study="c", series=f"c-{number // 3}", PatientID="P-0", InstanceNumber=number)
    done = run(
        ["run", str(root), "--lake", str(folder / "lake")],
        [*KILLED_RUN, str(folder / "e"), "-1"],
        **CHUNKED,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root, hash_tables(folder / "lake"), (folder / "e").read_text().splitlines()


def name_large_moments(events: list[str]) -> dict[str, int]:
    """Moments of reading a large unit and writing its shard, by name."""
    parts = [n for n, event in enumerate(events) if event.startswith("after .chunks/extract")]
    opened = [n for n, event in enumerate(events) if event.startswith("open primary/sub-0")]
    named = {
        "while the second chunk is read": opened[4],
        "between the parts of a chunk": parts[1],
        "between two chunks": parts[4],
        "before the last part": parts[-1] - 1,
        "after the last chunk": parts[-1],
        "before the shard": events.index("before findings/extract/ds/0000.parquet"),
        "before the joined headers": events.index("before headers/ds/0000.parquet"),
        "between joined headers and files": events.index("after headers/ds/0000.parquet"),
        "after the joined files": events.index("after files/ds/0000.parquet"),
    }
    assert list(named) == LARGE_MOMENTS
    assert len(set(named.values())) == len(named)
    return named


LARGE_MOMENTS = [
    "while the second chunk is read",
    "between the parts of a chunk",
    "between two chunks",
    "before the last part",
    "after the last chunk",
    "before the shard",
    "before the joined headers",
    "between joined headers and files",
    "after the joined files",
]


@pytest.mark.parametrize("moment", LARGE_MOMENTS)
def test_a_run_killed_within_a_large_unit_is_completed(moment, large, tmp_path):
    root, expected, events = large
    arguments = ["run", str(root), "--lake", str(tmp_path / "lake")]
    killed = run(arguments, [*KILLED_RUN, str(tmp_path / "events"), str(name_large_moments(events)[moment])], **CHUNKED)
    assert killed.returncode == -signal.SIGKILL
    again = run(arguments, [*KILLED_RUN, str(tmp_path / "events"), "-1"], **CHUNKED)
    assert again.returncode == 0, again.stdout + again.stderr
    assert hash_tables(tmp_path / "lake") == expected
    assert [path for path in (tmp_path / "lake").rglob("*") if path.is_file() and "/." in str(path)] == []


def test_a_run_killed_while_workers_read_is_completed(tmp_path):
    root = tmp_path / "ds"
    for number in range(450):
        write_instance(root / f"sub-1/{number // 30:02}/{number}.dcm", study="1", series=str(number // 30))
    arguments = ["audit", str(root), "--workers", "2", "--lake"]
    script = [*KILLED_RUN, str(tmp_path / "events"), "-1"]
    command = [sys.executable, *script, *arguments, str(tmp_path / "killed")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"CHUNK_FILES": "30", "FEW_FILES": "0"}
    )
    chunks = tmp_path / "killed/.chunks/extract/ds"
    deadline = time.monotonic() + 60
    while not list(chunks.glob("*.done")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/commits").exists(), "killed too late"
    assert run([*arguments, str(tmp_path / "killed")]).returncode == 0
    assert run([*arguments, str(tmp_path / "whole")]).returncode == 0
    assert hash_tables(tmp_path / "killed") == hash_tables(tmp_path / "whole")


def test_all_engines_give_the_same_bytes(tmp_path, dask_cluster):
    big = write_dataset(tmp_path / "big")
    for number in range(450):  # sub-x0 is read in chunks
        subject = max(number % 5 - 1, 0)
        path = big / "primary" / f"sub-x{subject}" / f"{number % 7}" / f"{number}.dcm"
        write_instance(path, study=f"s{subject}", series=f"s{subject}-{number % 7}", PatientID=f"X{subject}")
    script = [*KILLED_RUN, str(tmp_path / "events"), "-1"]
    for engine in ("serial", "processes", "dask"):
        arguments = ["audit", str(big), "--lake", str(tmp_path / engine), "--workers", "2", "--engine", engine]
        done = run(arguments, script, CHUNK_FILES="100", FEW_FILES="0", DICOM_ETL_SCHEDULER=dask_cluster.address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "write big" in done.stdout
    assert hash_tables(tmp_path / "serial") == hash_tables(tmp_path / "processes") == hash_tables(tmp_path / "dask")


def test_a_run_without_a_dask_scheduler_is_completed_by_the_next(tmp_path):
    root = tmp_path / "ds"
    for number in range(8):
        write_instance(root / f"sub-{number % 4}/{number}.dcm", study=str(number % 4), series=str(number % 4))
    arguments = ["audit", str(root), "--lake", str(tmp_path / "lake"), "--engine"]
    script = [*KILLED_RUN, str(tmp_path / "events"), "-1"]
    failed = run([*arguments, "dask"], script, DICOM_ETL_SCHEDULER="tcp://127.0.0.1:1", FEW_FILES="0", CHUNK_FILES="2")
    assert failed.returncode == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in failed.stdout
    assert "Traceback" not in failed.stdout + failed.stderr
    assert run([*arguments, "serial"]).returncode == 0


def test_a_second_run_opens_no_dicom_file_and_writes_no_table(undisturbed, tmp_path):
    root, expected, _ = undisturbed
    arguments = ["run", str(root), "--lake", str(tmp_path / "lake")]
    events = tmp_path / "events"
    run_killable(events, -1, arguments, **SHARDED)
    assert run_killable(events, -1, arguments, **SHARDED).returncode == 0
    names = events.read_text().splitlines()
    assert [event for event in names if event.startswith("open ")] == []
    written = [event.removeprefix("before ") for event in names if event.startswith("before")]
    assert written == ["findings/crawl/ds/dataset.parquet", "sheets/ds.parquet", "inventory/ds.parquet"]
    assert hash_tables(tmp_path / "lake") == expected


def test_two_runs_at_once_give_the_result_of_one(undisturbed, tmp_path):
    root, expected, _ = undisturbed
    script = [sys.executable, *KILLED_RUN]
    arguments = ["-1", "run", str(root), "--lake", str(tmp_path / "lake")]
    processes = [
        subprocess.Popen(
            [*script, str(tmp_path / name), *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env=os.environ | SHARDED,
        )
        for name in "ab"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert hash_tables(tmp_path / "lake") == expected


def test_a_run_that_does_not_wait_names_the_holder_of_the_lock(undisturbed, tmp_path):
    root, _, _ = undisturbed
    lake = Lake(str(tmp_path / "lake")).open()
    assert choose_lock_folder(lake.root, is_local=True) == tmp_path / "lake/locks"
    with lake.lock("ds", "crawl of ds"):
        refused = run(["run", str(root), "--lake", lake.root, "--no-wait"], **SERIAL)
    assert refused.returncode == 1
    assert f"process {os.getpid()}" in refused.stdout
    assert "crawl of ds" in refused.stdout
    assert not (tmp_path / "lake/inventory").exists()
