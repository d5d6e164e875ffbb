"""Uploads in processes that are killed at a chosen moment, each behind a proxy that sees its requests.

The moment is a request (before the server gets it, while it is on its way, or when it was answered and the client has
not heard of it), a commit of the ledger (before, inside or after it), or a time.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.http_server import serve

AT_REQUEST = ("before", "late", "answered")
AT_COMMIT = ("commit-before", "commit-inside", "commit-after")
KINDS = (*AT_REQUEST, *AT_COMMIT, "time")
_PASSED_ON = ("Accept", "Content-Type", "Cache-Control", "Prefer", "If-Match")
_PASSED_BACK = ("Content-Type", "ETag", "Location")
_TYPES = ("Patient", "ImagingStudy", "Endpoint")

# a process that is forked from one with all modules loaded starts in milliseconds
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dicom_etl.stages.upload", "sqlalchemy.dialects.postgresql.psycopg", __name__])


@dataclass(frozen=True)
class Kill:
    """When a run is killed: `number` of the request, write or commit, `seconds` of a time or of a late request."""

    kind: str
    number: int = 1
    seconds: float = 0.0
    is_write: bool = False

    @classmethod
    def of(cls, chance: random.Random, most: int) -> Kill:
        """A random one, among the first `most` requests."""
        kind = chance.choice(KINDS)
        is_write = kind in AT_REQUEST and chance.random() < 0.6
        number = chance.randint(1, max(1, most // 4 if is_write else most))
        seconds = 0.3 * chance.random() if kind == "late" else (0.3 + most / 60) * chance.random()
        return cls(kind, number, seconds, is_write)


# -- the process ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """An upload of datasets of a lake. `log` gets the counts, or the failure."""

    root: str
    ledger_url: str | None
    url: str
    datasets: tuple[str, ...]
    log: str
    fhir: dict[str, Any] = field(default_factory=dict)
    kill: Kill | None = None


def run_upload(job: Job) -> None:
    """Upload; in a process of its own."""
    from dicom_etl.fhir_client import retry
    from dicom_etl.lake.tables import Lake
    from dicom_etl.settings import FhirSettings, Settings
    from dicom_etl.stages.upload import upload

    retry.FIRST_PAUSE = 0.05
    if job.kill is not None and job.kill.kind in AT_COMMIT:
        _kill_at_commit(job.kill)
    try:
        lake = Lake(job.root, lock_wait=60, notify=lambda _: None, ledger_url=job.ledger_url)
        settings = Settings(fhir=FhirSettings(url=job.url, retry_seconds=60, **job.fhir))
        done = upload(job.datasets, lake, settings)
        said = [{"counts": dict(one.counts), "stopped": one.stopped, "findings": one.findings} for one in done]
        Path(job.log).write_text(json.dumps(said), encoding="utf-8")
    except BaseException:
        Path(job.log).write_text(traceback.format_exc(), encoding="utf-8")
        raise


class _KillingFuture:
    """Kills the process once its transaction is committed, before the other futures get their results."""

    def set_result(self, _: object) -> None:
        _end()


def _kill_at_commit(kill: Kill) -> None:
    from dicom_etl.upload.ledger import Ledger

    run_together = Ledger.run_transaction
    commits = 0

    def run(ledger: Any, connection: Any, jobs: Any) -> None:
        nonlocal commits
        commits += 1
        if commits < kill.number:
            run_together(ledger, connection, jobs)
        elif kill.kind == "commit-before":
            _end()
        elif kill.kind == "commit-inside":
            run_together(ledger, connection, [*jobs, (lambda _: _end(), _KillingFuture())])
        else:
            run_together(ledger, connection, [(lambda _: None, _KillingFuture()), *jobs])

    Ledger.run_transaction = run  # type: ignore[method-assign]


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Running:
    """A run that was started."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.process = _CONTEXT.Process(target=run_upload, args=(job,), daemon=True)
        Path(job.log).unlink(missing_ok=True)
        self.process.start()

    def wait(self, seconds: float = 180) -> str:
        """Wait for the end, and return `killed`, `ended`, or the traceback.

        Raises:
            AssertionError: it does not end.
        """
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the upload of {self.job.root} does not end")
        if self.process.exitcode == -signal.SIGKILL:
            return "killed"
        if self.process.exitcode == 0:
            return "ended"
        log = Path(self.job.log)
        return log.read_text(encoding="utf-8") if log.exists() else f"exit code {self.process.exitcode}"

    @property
    def summaries(self) -> list[dict[str, Any]]:
        """The summaries of a run that ended."""
        return list(json.loads(Path(self.job.log).read_text(encoding="utf-8")))


# -- the proxy --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A write that the server accepted: Type/id, resource, status, and whether its client was killed by then."""

    key: str
    resource: dict[str, Any]
    status: int
    is_killed: bool


@dataclass
class Watch:
    """The requests that the proxy of one lake has seen. `kill` and `victim` are those of the current run.

    `delays` delays every second write by up to so many seconds, so that both lakes write without having seen the
    write of the other.
    """

    target: str
    url: str = ""
    kill: Kill | None = None
    victim: Running | None = None
    is_killed: bool = False
    delays: float = 0.0
    chance: random.Random = field(default_factory=random.Random)
    requests: int = 0
    writes: int = 0
    busy: int = 0
    written: list[Written] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    _metadata: tuple[int, dict[str, str], bytes] | None = None

    def begin(self, kill: Kill | None) -> None:
        """Before a run starts."""
        self.kill, self.victim, self.is_killed = kill, None, False
        self.requests = self.writes = 0

    def settle(self) -> None:
        """Wait until no request of a killed client is running."""
        deadline = time.monotonic() + 60
        while self.busy:
            assert time.monotonic() < deadline, "requests are on their way that do not end"
            time.sleep(0.002)

    def strike(self) -> None:
        """Kill the run."""
        deadline = time.monotonic() + 5
        while self.victim is None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert self.victim is not None
        self.is_killed = True
        self.victim.process.kill()


@contextmanager
def run_proxies(*watches: Watch) -> Iterator[None]:
    """A proxy for each lake."""
    with ExitStack() as proxies:
        for watch in watches:
            watch.url = f"{proxies.enter_context(serve(partial(_make_application, watch)))}/fhir"
        yield


def _make_application(watch: Watch, session: aiohttp.ClientSession) -> web.Application:
    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", _Handler(session, watch).answer)
    return application


@dataclass(frozen=True)
class _Handler:
    session: aiohttp.ClientSession
    watch: Watch

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.watch.busy += 1
        try:
            return await self._answer(request)
        finally:
            self.watch.busy -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        watch = self.watch
        body = await request.read()
        path = request.raw_path.removeprefix("/fhir").lstrip("/")
        if path == "metadata":
            return await self._metadata(request)
        watch.asked.append(f"{request.method} {path}")
        is_write = request.method in ("PUT", "DELETE") or (request.method == "POST" and not path)
        watch.requests += 1
        watch.writes += is_write
        kill = watch.kill if self._is_moment(is_write) else None
        if kill is not None and kill.kind in ("before", "late"):
            watch.strike()
            if kill.kind == "before":
                return _lose(request)
            await asyncio.sleep(kill.seconds)
        if is_write and watch.chance.random() < 0.5:
            await asyncio.sleep(watch.delays * watch.chance.random())
        status, headers, answer = await self._pass_on(request, path, body)
        if is_write and 200 <= status < 300:
            watch.written += _written(request.method, path, body, answer, status, is_killed=watch.is_killed)
        if kill is not None and kill.kind == "answered":
            watch.strike()
            return _lose(request)
        return web.Response(status=status, body=answer, headers=headers)

    def _is_moment(self, is_write: bool) -> bool:
        watch = self.watch
        if watch.kill is None or watch.is_killed or watch.kill.kind not in AT_REQUEST:
            return False
        if watch.kill.is_write:
            return is_write and watch.writes == watch.kill.number
        return watch.requests == watch.kill.number

    async def _pass_on(self, request: web.Request, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in request.headers.items() if name in _PASSED_ON}
        headers["Host"] = urlsplit(self.watch.target).netloc
        url = URL(f"{self.watch.target}/{path}" if path else self.watch.target, encoded=True)
        async with self.session.request(request.method, url, data=body or None, headers=headers) as response:
            kept = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
            return response.status, kept, await response.read()

    async def _metadata(self, request: web.Request) -> web.Response:
        """The CapabilityStatement, asked for once and without the types that are not uploaded: it is large."""
        watch = self.watch
        if watch._metadata is None:
            status, headers, answer = await self._pass_on(request, "metadata", b"")
            content = json.loads(answer)
            for rest in content["rest"]:
                rest["resource"] = [resource for resource in rest["resource"] if resource["type"] in _TYPES]
            watch._metadata = status, headers, json.dumps(content).encode()
        status, headers, answer = watch._metadata
        return web.Response(status=status, body=answer, headers=headers)


def _lose(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.close()
    return web.Response()


def _written(method: str, path: str, body: bytes, answer: bytes, status: int, *, is_killed: bool) -> Iterator[Written]:
    if method == "DELETE":
        yield Written(path, {}, status, is_killed)
        return
    content = json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
    if content["resourceType"] != "Bundle":
        yield Written(path, content, status, is_killed)
        return
    answers = json.loads(answer)["entry"]
    for entry, said in zip(content["entry"], answers, strict=True):
        number = int(said["response"]["status"].partition(" ")[0])
        yield Written(entry["request"]["url"], entry["resource"], number, is_killed)
