"""What a run costs for few subjects of many files and for many subjects of few: the same files in three shapes.

    python -m benchmarks.shapes [--files N] [--repeat N] [--shapes NAMES] [--workers N] [--keep FOLDER]

Prints a plain text table with a column for each shape (subjects x files of each) and asserts no times: seconds differ
from machine to machine, and from minute to minute; the ratios of one run are what counts. For each shape the dataset
is written, loaded into a new lake, loaded again unchanged, and again after one file has changed; each of these runs is
a process of its own. The datasets and lakes are in a temporary folder (TMPDIR chooses the disk), or below `--keep`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom

from benchmarks import contenders
from benchmarks.shapes_corpus import Shape, change_file, restore_file, write_shape
from benchmarks.shapes_stages import MEASURED
from benchmarks.usage import Usage

SHAPES = ("wide", "middle", "tall")
_REPOSITORY = Path(__file__).parent.parent
_PYDICOM_FILES = 2_000  # files that pydicom reads, at most
_SUBJECTS = 100  # subjects for which row groups are counted, at most

_NOTES = """CPU is the user and system time of a process and its workers. A whole run includes the start of the process;
the figures of its stages do not. Stages start workers for large datasets only; "-" means that no worker ran.
Rows read for one subject: all rows of the row groups of the header tables whose statistics of the column unit include
the subject, or of the file that is named after the subject; the largest figure of up to 100 subjects.
dcmread: pydicom's dcmread(stop_before_pixels=True) in one process, alone, which converts no values, and with the values
of the columns of the header table, as extract has them. The files are in the page cache."""


class Options(NamedTuple):
    """What the command line asks for."""

    files: int
    repeat: int
    shapes: tuple[str, ...]
    workers: int
    keep: Path | None


class Run(NamedTuple):
    """A run of all stages but the upload; memory in MB."""

    total: Usage
    stages: dict[str, Usage]
    opened: int
    parent_memory: float
    worker_memory: float | None


class LakeSize(NamedTuple):
    """Files and bytes of a lake; bytes of the largest footer of a header table; rows read for one subject."""

    files: int
    size: int
    footer: int
    rows_read: int


@dataclass(frozen=True)
class Measurement:
    """All that was measured of a shape; runs of each kind, one per repetition."""

    subjects: int
    per_subject: int
    written: Shape
    writing: float  # seconds
    first: list[Run]
    unchanged: list[Run]
    changed: list[Run]
    lake: LakeSize
    dcmread: float  # seconds of processor time per file
    dcmread_values: float

    @property
    def files(self) -> int:
        """Files of the dataset."""
        return len(self.written.paths)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    print(_machine())
    print(f"{options.files:,} files in each shape, {options.workers} workers, median of {options.repeat}")
    columns = {name: _measure(name, options) for name in options.shapes}
    _print(columns)


def _options(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000, help="files of each shape (default 20000)")
    parser.add_argument("--repeat", type=int, default=1, help="repetitions; the median is shown (default 1)")
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"separated by commas: {', '.join(SHAPES)}")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="new folder for datasets and lakes, which stay")
    given = parser.parse_args(arguments)
    shapes = tuple(given.shapes.split(","))
    if unknown := set(shapes) - set(SHAPES):
        parser.error(f"--shapes knows {', '.join(SHAPES)}, not {', '.join(sorted(unknown))}")
    if given.files < 20 or given.files % 20:
        parser.error("--files must be a multiple of 20: the shape wide has 20 subjects of equal size")
    if given.repeat < 1 or given.workers < 1:
        parser.error("--repeat and --workers must be at least 1")
    if given.keep and given.keep.exists():
        parser.error(f"--keep: {given.keep} exists; name a new folder")
    return Options(given.files, given.repeat, shapes, given.workers, given.keep)


def _machine() -> str:
    return (
        f"Python {platform.python_version()}, pydicom {pydicom.__version__}, pyarrow {pa.__version__}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


# -- measuring --------------------------------------------------------------------------------------------------------


def _measure(name: str, options: Options) -> Measurement:
    subjects, per_subject = _sides(name, options.files)
    with _folder(name, options.keep) as folder:
        start = time.perf_counter()
        written = write_shape(folder / name, subjects, per_subject)
        writing = time.perf_counter() - start
        os.sync()  # what is still to be written to disk would disturb the first run
        first, unchanged, changed = [], [], []
        for _ in range(options.repeat):
            lake = folder / "lake"
            shutil.rmtree(lake, ignore_errors=True)
            first.append(_run(written.root, lake, options.workers, opened=range(options.files, options.files + 1)))
            size = _lake_size(lake, name, written)
            unchanged.append(_run(written.root, lake, options.workers, opened=range(1)))
            with _one_changed(Path(written.paths[-1])):
                changed.append(_run(written.root, lake, options.workers, opened=range(1, per_subject + 1)))
        pydicom_alone, pydicom_values = (
            _seconds(read, written.paths) for read in (_dcmread, contenders.pydicom_values)
        )
    return Measurement(
        subjects, per_subject, written, writing, first, unchanged, changed, size, pydicom_alone, pydicom_values
    )


def _sides(name: str, files: int) -> tuple[int, int]:
    """Subjects of a shape, and files of each."""
    return {"wide": (20, files // 20), "middle": (files // 10, 10), "tall": (files, 1)}[name]


@contextlib.contextmanager
def _folder(name: str, keep: Path | None) -> Iterator[Path]:
    if keep:
        folder = keep.resolve() / name
        folder.mkdir(parents=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix=f"bench-shapes-{name}-") as temporary:
            yield Path(temporary)


@contextlib.contextmanager
def _one_changed(path: Path) -> Iterator[None]:
    former = change_file(path)
    try:
        yield
    finally:
        restore_file(path, former)


def _run(root: Path, lake: Path, workers: int, *, opened: range) -> Run:
    """One run; a run that opened another number of files than these has not done what is measured."""
    command = [sys.executable, "-m", "benchmarks.shapes_stages", str(root), str(lake), str(workers)]
    start = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY)
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"the run over {root} failed, exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["opened"] not in opened:
        raise SystemExit(f"the run over {root} opened {found['opened']} files, not {opened[0]} to {opened[-1]}")
    stages = {stage: Usage(*used) for stage, used in found["stages"].items()}
    return Run(Usage(found["cpu"], wall), stages, found["opened"], found["parent_memory"], found["worker_memory"])


def _seconds(read: Callable[[Sequence[str]], None], paths: Sequence[str]) -> float:
    """Processor time per file of a reader, for every n-th file."""
    sample = paths[:: max(1, len(paths) // _PYDICOM_FILES)][:_PYDICOM_FILES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(sample[:20])  # imports, and tables that are made once
        before = time.process_time()
        read(sample)
        return (time.process_time() - before) / len(sample)


def _dcmread(paths: Sequence[str]) -> None:
    for path in paths:
        pydicom.dcmread(path, stop_before_pixels=True)


# -- the lake ---------------------------------------------------------------------------------------------------------


def _lake_size(lake: Path, dataset: str, written: Shape) -> LakeSize:
    sizes = [Path(folder, name).stat().st_size for folder, _, names in os.walk(lake) for name in names]
    tables = sorted((lake / "headers" / dataset).glob("*.parquet"))
    subjects = sorted({Path(path).parts[-3] for path in written.paths})
    sample = subjects[:: max(1, len(subjects) // _SUBJECTS)][:_SUBJECTS]
    return LakeSize(len(sizes), sum(sizes), max(map(_footer_bytes, tables)), rows_read(tables, sample))


def _footer_bytes(table: Path) -> int:
    """The length of a Parquet file's metadata: four bytes before the mark at its end."""
    with table.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def rows_read(tables: Sequence[Path], subjects: Sequence[str]) -> int:
    """Rows of the row groups that a read of one subject touches; of the subject where they are most."""
    files = {table.stem: table for table in tables}
    if all(subject in files for subject in subjects):
        return max(int(pq.read_metadata(files[subject]).num_rows) for subject in subjects)
    groups = [group for table in tables for group in _row_groups(table)]
    return max(sum(rows for rows, least, most in groups if least <= subject <= most) for subject in subjects)


def _row_groups(table: Path) -> Iterator[tuple[int, str, str]]:
    """Rows, least and greatest unit of each row group; one without statistics may hold any unit."""
    metadata = pq.read_metadata(table)
    column = metadata.schema.to_arrow_schema().get_field_index("unit")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        units = group.column(column).statistics if column >= 0 else None
        if units is None or not units.has_min_max:
            yield group.num_rows, "", chr(sys.maxunicode)
        else:
            yield group.num_rows, units.min, units.max


# -- the table --------------------------------------------------------------------------------------------------------

_Figure = Callable[[Measurement], str]


def _print(columns: dict[str, Measurement]) -> None:
    print(f"\n{'':44}{''.join(f'{name:>16}' for name in columns)}")
    for title, rows in _tables():
        if title:
            print(f"\n{title}")
        for label, figure in rows:
            print(f"{label:44}{''.join(f'{figure(column):>16}' for column in columns.values())}")
    print(f"\n{_NOTES}")


def _tables() -> list[tuple[str, list[tuple[str, _Figure]]]]:
    """Title, labels and figures of each part of the table."""
    return [
        (
            "",
            [
                ("subjects x files", lambda of: f"{of.subjects:,} x {of.per_subject:,}"),
                ("studies", lambda of: f"{of.written.studies:,}"),
                ("series", lambda of: f"{of.written.series:,}"),
                ("bytes per file", lambda of: f"{of.written.size / of.files:,.0f}"),
                ("files written per second", lambda of: f"{of.files / of.writing:,.0f}"),
            ],
        ),
        ("first run, CPU per file (us)", _stage_rows("cpu")),
        ("first run, wall per file (us)", _stage_rows("wall")),
        (
            "pydicom, same files",
            [
                ("  dcmread, CPU per file (us)", lambda of: f"{of.dcmread * 1e6:,.1f}"),
                ("  dcmread and values, CPU per file (us)", lambda of: f"{of.dcmread_values * 1e6:,.1f}"),
                ("  extract, x dcmread per core", lambda of: f"{of.dcmread / _stage(of, 'extract', 'cpu'):.1f}"),
                (
                    "  extract, x dcmread and values per core",
                    lambda of: f"{of.dcmread_values / _stage(of, 'extract', 'cpu'):.1f}",
                ),
            ],
        ),
        (
            "later runs, total (s)",
            [
                ("  unchanged, CPU", lambda of: f"{_total(of.unchanged, 'cpu'):,.2f}"),
                ("  unchanged, wall", lambda of: f"{_total(of.unchanged, 'wall'):,.2f}"),
                ("  one subject changed, CPU", lambda of: f"{_total(of.changed, 'cpu'):,.2f}"),
                ("  one subject changed, wall", lambda of: f"{_total(of.changed, 'wall'):,.2f}"),
            ],
        ),
        (
            "first run, peak memory (MB)",
            [
                ("  parent process", lambda of: f"{max(run.parent_memory for run in of.first):,.0f}"),
                ("  largest worker", _worker_memory),
            ],
        ),
        (
            "lake after the first run",
            [
                ("  files", lambda of: f"{of.lake.files:,}"),
                ("  bytes", lambda of: f"{of.lake.size:,}"),
                ("  bytes per instance", lambda of: f"{of.lake.size / of.files:,.0f}"),
                ("  largest footer of a header table (bytes)", lambda of: f"{of.lake.footer:,}"),
                ("  rows read for one subject", lambda of: f"{of.lake.rows_read:,}"),
            ],
        ),
    ]


def _stage_rows(measure: str) -> list[tuple[str, _Figure]]:
    rows = [(f"  {stage}", _stage_figure(stage, measure)) for stage in MEASURED]
    return [*rows, ("  whole run", lambda of: f"{_total(of.first, measure) / of.files * 1e6:,.1f}")]


def _stage_figure(stage: str, measure: str) -> _Figure:
    return lambda of: f"{_stage(of, stage, measure) * 1e6:,.1f}"


def _stage(of: Measurement, stage: str, measure: str) -> float:
    """Seconds per file of a stage of the first run."""
    seconds: list[float] = [getattr(run.stages[stage], measure) for run in of.first]
    return statistics.median(seconds) / of.files


def _total(runs: Sequence[Run], measure: str) -> float:
    seconds: list[float] = [getattr(run.total, measure) for run in runs]
    return statistics.median(seconds)


def _worker_memory(of: Measurement) -> str:
    found = [run.worker_memory for run in of.first if run.worker_memory is not None]
    return f"{max(found):,.0f}" if found else "-"


if __name__ == "__main__":
    main()
