"""Uploads of two lakes of one namespace that are killed again and again: nothing is lost, doubled, or left open.

`scenario` runs one seed. As a script this module starts the servers and runs seeds until there were enough kills: a
part of `make soak`, with ARGS='--kills 400 --first 5000' for others. It names the seeds that fail.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dicom_etl.lake.tables import Lake
from tests.servers.hapi_server import run_hapi
from tests.servers.postgres_server import fresh_database, run_postgres
from tests.support.upload_lakes import new_lake
from tests.upload.soak import kill_checks
from tests.upload.soak.kill_checks import Checked
from tests.upload.soak.kill_world import DATASET, SINGLE_REQUEST_BYTES, KillWorld, LakeContent
from tests.upload.soak.killed_uploads import Job, Kill, Running, Watch, run_proxies

_MOST_ROUNDS = 5  # of undisturbed runs of both lakes, until nothing is written any more
_DELAY = 0.3  # seconds: of writes, while lakes are killed
_UNSETTLED = ("failed", "rejected", "unconfirmed", "waiting", "orphaned")


@dataclass(frozen=True)
class Size:
    """How large a scenario is: studies that are changed, and new ones; kills of lake A; requests until a kill."""

    changed: int = 300
    new: int = 300
    kills: int = 25
    most_requests: int = 120


@dataclass
class Side:
    """A lake with its content, its proxy and its settings."""

    content: LakeContent
    lake: Lake
    ledger_url: str | None
    watch: Watch
    fhir: dict[str, int]
    log: str
    killed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self, kill: Kill | None = None) -> str:
        """One run, killed or not."""
        self.watch.begin(kill)
        fhir = dict(self.fhir)
        job = Job(self.lake.root, self.ledger_url, self.watch.url, (DATASET,), self.log, fhir, kill)
        running = Running(job)
        self.watch.victim = running
        if kill is not None and kill.kind == "time":
            time.sleep(kill.seconds)
            running.process.kill()
        said = running.wait()
        self.watch.settle()
        if kill is not None and said == "killed":
            self.killed[kill.kind] += 1
        elif said != "ended":
            self.wrong.append(f"lake {self.content.name}: {said}")
        else:
            self.wrong += [f"lake {self.content.name}: {one}" for one in _summary_wrong(running, is_last=False)]
        return said

    def run_undisturbed(self) -> None:
        """Run once undisturbed, which must complete everything."""
        self.watch.begin(None)
        job = Job(self.lake.root, self.ledger_url, self.watch.url, (DATASET,), self.log, dict(self.fhir))
        running = Running(job)
        self.watch.victim = running
        said = running.wait()
        if said != "ended":
            self.wrong.append(f"lake {self.content.name}: {said}")
        else:
            self.wrong += [f"lake {self.content.name}: {one}" for one in _summary_wrong(running, is_last=True)]


def _summary_wrong(running: Running, *, is_last: bool) -> Iterator[str]:
    for summary in running.summaries:
        if summary["stopped"]:
            yield f"stopped: {summary['stopped']}"
        for kind, counts in summary["counts"].items():
            for state in _UNSETTLED if is_last else ("rejected", "orphaned"):
                if counts.get(state):
                    yield f"{counts[state]} {kind} {state}"


def scenario(seed: int, url: str, folder: Path, size: Size, ledger_url: str | None = None) -> Counter[str]:
    """Upload, change, be killed, complete, and compare; returns the kills by lake and kind, and other counts.

    Raises:
        AssertionError: the server, or a ledger, is not as it must be.
    """
    world = KillWorld.of(seed, f"kill-{seed}-{uuid.uuid4().hex[:8]}", size.changed, size.new)
    watches = tuple(Watch(url, chance=random.Random(f"{name} {seed}")) for name in "AB")
    sides = [
        Side(
            content,
            new_lake(folder / content.name),
            ledger_url,
            watch,
            _settings(world),
            str(folder / content.name) + ".log",
        )
        for content, watch in zip(world.lakes, watches, strict=True)
    ]
    a, b = sides
    with run_proxies(*watches):
        _build(world, a)
        a.run_undisturbed()
        world.add_changes()
        for side in sides:
            _build(world, side)
        _disturb(world, a, b, size)
        _complete(sides)
        checked = _check(world, sides, url)
        wrong = [one for side in sides for one in side.wrong] + list(kill_checks.all_wrong(checked))
        wrong += _stale_wrong(world, sides, checked, url)
    counts = Counter({f"{side.content.name} {kind}": n for side in sides for kind, n in side.killed.items()})
    counts |= _count(checked)
    if wrong:
        raise AssertionError("\n".join([f"seed {seed} ({world.factory.name}), {counts.total()}:", *wrong]))
    return counts


def _settings(world: KillWorld) -> dict[str, int]:
    chance = world.chance
    return {
        "max_bundle_entries": chance.choice((3, 8, 20)),
        "max_concurrent_requests": chance.choice((2, 4)),
        "single_request_bytes": chance.choice((SINGLE_REQUEST_BYTES, SINGLE_REQUEST_BYTES, 1200)),
    }


def _build(world: KillWorld, side: Side) -> None:
    world.factory.build(side.lake, DATASET, side.content.built_studies())


def _disturb(world: KillWorld, a: Side, b: Side, size: Size) -> None:
    """Kill lake A until there were enough kills, while lake B uploads and is killed, too."""
    is_over = threading.Event()
    failures: list[BaseException] = []
    for side in (a, b):
        side.watch.delays = _DELAY

    def run_b() -> None:
        try:
            while not is_over.is_set():
                chance = b.content.chance
                kill = Kill.of(chance, size.most_requests) if chance.random() < 0.7 else None
                if b.run(kill) == "ended":
                    world.change_again(b.content)
                    _build(world, b)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run_b)
    thread.start()
    try:
        for _ in range(4 * size.kills):
            if a.killed.total() >= size.kills or a.wrong:
                break
            if a.run(Kill.of(a.content.chance, size.most_requests)) == "ended":
                world.change_again(a.content)
                _build(world, a)
    finally:
        is_over.set()
        thread.join()
        a.watch.delays = b.watch.delays = 0.0
    if failures:
        raise failures[0]


def _complete(sides: Sequence[Side]) -> None:
    """Run both until nothing is written any more."""
    for _ in range(_MOST_ROUNDS):
        before = [len(side.watch.written) for side in sides]
        for side in sides:
            side.run_undisturbed()
        if [len(side.watch.written) for side in sides] == before:
            return
    sides[0].wrong.append(f"writes go on after {_MOST_ROUNDS} runs of both lakes")


def _check(world: KillWorld, sides: Sequence[Side], url: str) -> Checked:
    a, b = (kill_checks.read_ledger(side.lake.root, side.ledger_url, side.lake.lake_id) for side in sides)
    written = sides[0].watch.written, sides[1].watch.written
    return Checked(world, (a, b), kill_checks.read_server(url, world), written)


def _stale_wrong(world: KillWorld, sides: Sequence[Side], checked: Checked, url: str) -> list[str]:
    """A study that the other lake changed last is held when this lake changes it, and not replaced."""
    wrong = []
    for side, ledger in zip(sides, checked.ledgers, strict=True):
        stale = kill_checks.stale_studies(checked, side.content, ledger)
        if not stale:
            continue
        world.change_descriptions(side.content, stale)
        _build(world, side)
        side.run_undisturbed()
        rows = kill_checks.read_ledger(side.lake.root, side.ledger_url, side.lake.lake_id).rows
        after = kill_checks.read_server(url, world)
        for number in stale:
            said = kill_checks.describe(checked, f"ImagingStudy/{world.factory.study_id(DATASET, number)}")
            key = f"ImagingStudy/{world.factory.study_id(DATASET, number)}"
            if (rows[key]["state"], rows[key]["reason"]) != ("held", "changed-on-server"):
                wrong.append(f"study {number} ({said}): changed by the other lake, and then {rows[key]['state']}")
            if len(after.versions[key]) != len(checked.server.versions[key]):
                wrong.append(f"study {number} ({said}): the other lake's version was replaced")
    return wrong


def _count(checked: Checked) -> Counter[str]:
    """Count what happened, for people to read."""
    counts: Counter[str] = Counter()
    for lake, ledger in checked.sides:
        for row in ledger.rows.values():
            if row["reason"]:
                counts[f"{lake.name} {row['type']} {row['reason']}"] += 1
        counts[f"{lake.name} open attempts"] += len(ledger.attempts)
        counts[f"{lake.name} stale"] += len(kill_checks.stale_studies(checked, lake, ledger))
    counts["written"] = sum(map(len, checked.written))
    return counts


# -- the script -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds until lake A was killed often enough; returns 1 if any failed."""
    parser = argparse.ArgumentParser(description="kill uploads, seed by seed, with SQLite and with PostgreSQL")
    parser.add_argument("--kills", type=int, default=200, help="of lake A, with each database (default: 200)")
    parser.add_argument("--per-seed", type=int, default=25, help="kills of lake A in one seed (default: 25)")
    parser.add_argument("--studies", type=int, default=300, help="changed, and as many new ones (default: 300)")
    parser.add_argument("--requests", type=int, default=120, help="until a kill, at most (default: 120)")
    parser.add_argument("--first", type=int, default=1000, help="the first seed (default: 1000)")
    parser.add_argument("--databases", default="sqlite,postgresql", help="(default: sqlite,postgresql)")
    parser.add_argument("--keep-going", action="store_true", help="go on after a seed that failed")
    chosen = parser.parse_args(arguments)
    size = Size(chosen.studies, chosen.studies, chosen.per_seed, chosen.requests)
    failed = 0
    with ExitStack() as stack:
        server = stack.enter_context(run_hapi(long_lived=True))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))
        postgres = stack.enter_context(run_postgres()) if "postgresql" in chosen.databases else None
        for database in chosen.databases.split(","):
            counts: Counter[str] = Counter()
            rounds = -(-chosen.kills // chosen.per_seed)
            for seed in range(chosen.first, chosen.first + rounds):
                begun = time.monotonic()
                with ExitStack() as own:
                    url = own.enter_context(fresh_database(postgres)) if database == "postgresql" and postgres else None
                    try:
                        counts += scenario(seed, server.base_url, folder / f"{database}-{seed}", size, url)
                    except Exception as error:  # noqa: BLE001 - whatever it is, the seed has to be named
                        failed += 1
                        print(f"{database}, seed {seed} failed: {type(error).__name__}: {error}", flush=True)
                        if not chosen.keep_going:
                            return 1
                print(f"{database}, seed {seed}: {time.monotonic() - begun:.0f} s", flush=True)
            for name, number in sorted(counts.items()):
                print(f"  {database} {name:<40} {number:>6}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
