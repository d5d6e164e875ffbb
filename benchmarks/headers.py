"""Speed of reading headers: the extraction compared with pydicom, plain reading and two converters, in one run.

    python -m benchmarks.headers [--files N] [--repeat N] [--only WORDS] [--no-peers]

Prints plain text tables and asserts nothing: seconds differ between machines and from minute to minute, so compare the
ratios of one run. Readers take turns in each repetition, so that a busy minute affects all of them. The corpora are in
a temporary folder (on the disk of TMPDIR).
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pydicom

from benchmarks import contenders
from benchmarks.contenders import StartedEngine, crawl_into_lake, ignore, run_extraction
from benchmarks.corpora import Corpus, write_adverse, write_realistic
from benchmarks.usage import peak_memory
from dicom_etl.engine import Engine
from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.schemas import FILES, TAG_PROFILES, Table, header_table
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import TreeSource

WORKERS = 2
PEERS = Path(__file__).parent.parent / "build" / "peers"
PARTS = ("extract", "pydicom", "floor", "tutorial", "dicom2fhir", "memory", "unchanged", "size")
_SAMPLE = 300  # files for readers that take milliseconds per file

_COLD = """Cold: before each repetition every file is dropped from the page cache (posix_fadvise DONTNEED, after a
sync). Folders and inodes stay cached, and on a virtual machine the host may still hold the blocks: a new disk
or a network share is slower than this."""


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    files: int
    repeat: int
    parts: tuple[str, ...]
    corpora: tuple[str, ...]


@dataclass(frozen=True)
class CorpusFolder:
    """A corpus on disk."""

    name: str
    root: Path
    corpus: Corpus
    paths: tuple[str, ...]
    scratch: Path

    @property
    def source(self) -> TreeSource:
        """The corpus as a dataset."""
        return TreeSource(self.name, self.root)

    @property
    def sample(self) -> tuple[str, ...]:
        """Every n-th file, about `_SAMPLE` of them."""
        return self.paths[:: max(1, len(self.paths) // _SAMPLE)]

    @contextlib.contextmanager
    def lake(self) -> Iterator[Lake]:
        """A new lake with the inventory of the corpus."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            yield crawl_into_lake(self.source, f"{folder}/lake")

    def drop_from_cache(self) -> None:
        """Drop the files from the page cache."""
        for path in self.paths:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


class Sample(NamedTuple):
    """One measurement."""

    seconds: float
    read: int | None  # bytes, by system calls of this process


Run = Callable[[], Sample]


@dataclass
class Row:
    """A reader in a table: how it is run, on how many files, and its measurements."""

    label: str
    files: int
    run: Run
    repeat: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def each(self) -> float:
        """Microseconds per file (median)."""
        return statistics.median(sample.seconds for sample in self.samples) / self.files * 1e6

    @property
    def spread(self) -> float:
        """The difference between the fastest and the slowest repetition, as a fraction of the median."""
        seconds = [sample.seconds for sample in self.samples]
        return (max(seconds) - min(seconds)) / statistics.median(seconds)

    @property
    def read(self) -> str:
        """Kilobytes read per file."""
        read = self.samples[-1].read
        return "-" if read is None else f"{read / self.files / 1e3:.1f}"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    print(_machine())
    with tempfile.TemporaryDirectory(prefix="bench-headers-") as folder:
        for name in options.corpora:
            _measure(_write(name, Path(folder), options.files), options)


def _options(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=5000, help="files in each corpus (default 5000)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions; the median is shown (default 5)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--corpus", choices=["realistic", "adverse"], help="only one corpus")
    parser.add_argument("--no-peers", action="store_true", help="without the two converters (nothing is installed)")
    values = parser.parse_args(arguments)
    parts = tuple(values.only.split(","))
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is not one of {', '.join(PARTS)}")
    if values.no_peers:
        parts = tuple(part for part in parts if part not in {"tutorial", "dicom2fhir"})
    corpora = (values.corpus,) if values.corpus else ("realistic", "adverse")
    return Options(values.files, values.repeat, parts, corpora)


def _machine() -> str:
    return (
        f"Python {platform.python_version()}, pydicom {pydicom.__version__}, pyarrow {pa.__version__}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def _write(name: str, folder: Path, files: int) -> CorpusFolder:
    start = time.perf_counter()
    root = folder / name
    corpus = {"realistic": write_realistic, "adverse": write_adverse}[name](root, files)
    os.sync()  # pages that are not written yet cannot be dropped
    paths = tuple(sorted(str(path) for path in root.rglob("*") if path.is_file()))
    scratch = folder / f"{name}-lakes"
    scratch.mkdir()
    units = len(list((root / "primary").iterdir()))
    title = (
        f"{name}: {corpus.files:,} files, {corpus.series} series, {units} units, {corpus.size / 1e6:.0f} MB "
        f"({corpus.size / corpus.files / 1e3:.0f} KB per file; written in {time.perf_counter() - start:.1f} s)"
    )
    print(f"\n\n{title}\n{'=' * len(title)}")
    return CorpusFolder(name, root, corpus, paths, scratch)


def _measure(folder: CorpusFolder, options: Options) -> None:
    base = _serial(folder, options)
    if hasattr(os, "posix_fadvise"):
        _cold(folder, options)
    _slow(folder, options)
    _parallel(folder, options)
    if "dicom2fhir" in options.parts:
        _dicom2fhir(folder, options, base)
    figures = [
        line
        for part, function in (("unchanged", _unchanged), ("memory", _memory), ("size", _sizes))
        if part in options.parts
        for line in function(folder, options)
    ]
    if figures:
        print("\n" + "\n".join(figures))


# -- tables ------------------------------------------------------------------------------------------------------------


def _serial(folder: CorpusFolder, options: Options) -> float | None:
    """The table of one process; returns microseconds per file of pydicom."""
    rows = [*_extract_row(folder, options, Engine()), *_reader_rows(folder, options)]
    if "tutorial" in options.parts:
        few = min(3, options.repeat)
        loop = Row(
            "tutorial: whole file, str of all elements *",
            len(folder.sample),
            _reading(contenders.tutorial_loop, folder.sample),
            few,
        )
        rows.append(loop)
    _take_turns(rows, options.repeat)
    _print("one process, warm", rows)
    if "tutorial" in options.parts:
        print(f"* on a sample of {len(folder.sample)} files, median of {few}")
    return _base(rows)


def _cold(folder: CorpusFolder, options: Options) -> None:
    repeat = min(3, options.repeat)
    rows = [
        *_extract_row(folder, options, Engine(), cold=True),
        *_reader_rows(folder, options, cold=True),
    ]
    for row in rows:
        row.repeat = repeat
    _take_turns(rows, repeat)
    _print("one process, cold", rows)
    if rows:
        print(_COLD)


def _parallel(folder: CorpusFolder, options: Options) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        contenders.start_workers(pool, WORKERS)
        rows = _extract_row(folder, options, StartedEngine("processes", WORKERS, pool=pool))
        rows += _reader_rows(folder, options, pool=pool)
        _take_turns(rows, options.repeat)
    _print(f"{WORKERS} running processes, warm", rows)


def _slow(folder: CorpusFolder, options: Options) -> None:
    """The table of one process that waits for each file."""
    if not {"extract", "floor"} <= set(options.parts):
        return
    slow = contenders.SlowSource(folder.name, folder.root)
    rows = [
        Row("extract to Parquet", folder.corpus.files, _extracting(folder, Engine(), slow), 1),
        Row("open and read 64 KB", folder.corpus.files, _reading(contenders.slow_64k, folder.paths), 1),
    ]
    _take_turns(rows, 1)
    _print(f"one process, {contenders.DELAY * 1e3:.0f} ms for each opening (simulated by waiting), once", rows)


def _extract_row(folder: CorpusFolder, options: Options, engine: Engine, *, cold: bool = False) -> list[Row]:
    if "extract" not in options.parts:
        return []
    return [
        Row(
            "extract to Parquet",
            folder.corpus.files,
            _extracting(folder, engine, cold=cold),
            options.repeat,
        )
    ]


_READERS = (
    ("pydicom", "pydicom, stop_before_pixels, all columns", contenders.pydicom_values),
    ("floor", "open and read 64 KB", contenders.first_64k),
    ("floor", "open and read 8 KB", contenders.first_8k),
)


def _reader_rows(
    folder: CorpusFolder, options: Options, *, cold: bool = False, pool: ProcessPoolExecutor | None = None
) -> list[Row]:
    return [
        Row(
            label,
            folder.corpus.files,
            _reading(function, folder.paths, folder if cold else None, pool),
            options.repeat,
        )
        for part, label, function in _READERS
        if part in options.parts
    ]


def _take_turns(rows: list[Row], repeat: int) -> None:
    """Run each row `repeat` times, one after the other in each repetition."""
    for repetition in range(repeat):
        for row in rows:
            if repetition < row.repeat:
                row.samples.append(row.run())


def _base(rows: list[Row]) -> float | None:
    return next((row.each for row in rows if row.label.startswith("pydicom")), None)


def _print(title: str, rows: list[Row]) -> None:
    if not rows:
        return
    base = _base(rows)
    print(f"\n{title}; median of {rows[0].repeat}")
    print(f"{'':44}{'files/s':>10}{'us/file':>10}{'x pydicom':>11}{'spread':>9}{'KB read/file':>14}")
    for row in rows:
        ratio = f"{base / row.each:.1f}" if base else "-"
        print(f"{row.label:44}{1e6 / row.each:>10,.0f}{row.each:>10,.1f}{ratio:>11}{row.spread:>8.0%}{row.read:>15}")


# -- measurements ------------------------------------------------------------------------------------------------------


def _extracting(folder: CorpusFolder, engine: Engine, source: TreeSource | None = None, *, cold: bool = False) -> Run:
    def run() -> Sample:
        with folder.lake() as lake:
            if cold:
                folder.drop_from_cache()
            return _timed(
                lambda: run_extraction(source or folder.source, lake, engine), counted=engine.kind == "serial"
            )

    return run


def _reading(
    function: Callable[[contenders.Paths], None],
    paths: contenders.Paths,
    cold: CorpusFolder | None = None,
    pool: ProcessPoolExecutor | None = None,
) -> Run:
    def run() -> Sample:
        if cold:
            cold.drop_from_cache()
        if pool:
            return _timed(lambda: contenders.read_in_pool(pool, function, paths), counted=False)
        return _timed(lambda: function(paths), counted=True)

    return run


def _timed(work: Callable[[], None], *, counted: bool) -> Sample:
    before, start = _bytes_read(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - start, _bytes_read()
    return Sample(seconds, after - before if counted and before is not None and after is not None else None)


def _bytes_read() -> int | None:
    """The bytes that this process has read so far, by any library (Linux)."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return None
    return int(text.split()[1])


def _dicom2fhir(folder: CorpusFolder, options: Options, base: float | None) -> None:
    """A converter that builds FHIR objects with an entry per instance: more than a header row."""
    python = contenders.dicom2fhir_python(PEERS / "dicom2fhir")
    print("\ndicom2fhir 0.1.25, folders to ImagingStudy with instances, one process, warm")
    if python is None:
        print("could not be installed")
        return
    repeat = min(3, options.repeat)
    results = [contenders.dicom2fhir_seconds(python, folder.sample) for _ in range(repeat)]
    files, seconds = results[0][0], statistics.median(seconds for _, seconds in results)
    if not files:
        print(f"fails on every folder of a sample of {len(folder.sample)} files")
        return
    each = seconds / files * 1e6
    ratio = f"{base / each:.2f} x pydicom, " if base else ""
    missed = f"; it fails on the folders of {len(folder.sample) - files} more" if files < len(folder.sample) else ""
    speed = f"{1e6 / each:,.0f} files/s, {each:,.0f} us/file"
    print(f"{speed}, {ratio}on a sample of {files} files, median of {repeat}{missed}")


# -- single figures ----------------------------------------------------------------------------------------------------


def _unchanged(folder: CorpusFolder, options: Options) -> Iterable[str]:
    seconds = []
    with folder.lake() as lake:
        run_extraction(folder.source, lake, Engine())
        for _ in range(options.repeat):
            start = time.perf_counter()
            crawl_into_lake(folder.source, lake.root)
            run_extraction(folder.source, lake, Engine())
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    yield f"second run without changes (crawl and extract): {median:.2f} s, {folder.corpus.files / median:,.0f} files/s"


def _memory(folder: CorpusFolder, _: Options) -> Iterable[str]:
    """The peak memory of a new process that extracts the whole corpus."""
    with folder.lake() as lake:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_extract_and_report, args=(sender, folder.source, lake.root))
        process.start()
        sender.close()
        try:
            before, after = receiver.recv()
        finally:
            process.join()
    yield f"peak memory of a process that extracts the corpus: {after:.0f} MB, {before:.0f} MB of it before it begins"


def _extract_and_report(pipe: Connection, source: TreeSource, root: str) -> None:
    before = peak_memory()
    run_extraction(source, Lake(root, lock_wait=0, notify=ignore).open(), Engine())
    pipe.send((before, peak_memory()))


def _sizes(folder: CorpusFolder, _: Options) -> Iterable[str]:
    """The bytes of a Parquet file with one row, and those of each further row."""
    with folder.lake() as lake:
        run_extraction(folder.source, lake, Engine())
        shards = sorted(read_commits(lake, "extract", folder.name))
        yield "Parquet: bytes of a shard with one row, and of each further instance"
        for table in (header_table(), FILES, TAG_PROFILES):
            fixed, each = _size(lake, table, folder.name, shards)
            yield f"  {table.name:10}{fixed:>10,.0f}{each:>10,.1f}"


def _size(lake: Lake, table: Table, dataset: str, shards: list[int]) -> tuple[float, float]:
    one_row, all_rows, instances = 0, 0, 0
    for shard in shards:
        content = lake.read(table, dataset=dataset, shard=shard)
        path = lake.write(table, content.slice(0, 1), dataset="size", shard=shard)
        one_row += lake.resolve(path).stat().st_size
        all_rows += lake.resolve(table.path(dataset=dataset, shard=shard)).stat().st_size
        instances += lake.count_rows(header_table(), dataset=dataset, shard=shard)
    return one_row / len(shards), (all_rows - one_row) / max(1, instances - len(shards))


if __name__ == "__main__":
    main()
