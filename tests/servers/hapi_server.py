"""The HAPI FHIR server in ``hapi/``: build, start, stop, and validation of resources with it.

This module does not use pytest: the fixtures, and the sharing of one server by all workers of a run, are in
``plugin.py``. ``python -m tests.servers.hapi_server`` builds the server in advance.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tests.servers import server_process
from tests.servers.server_process import ServerUnavailableError, is_answering, launch, run_build, wait_until_ready

__all__ = ["HapiServer", "ServerUnavailableError", "build", "run_hapi", "start", "stop", "validate", "wipe"]

HAPI = Path(__file__).with_name("hapi")
TARGET = HAPI / "target"
JAR = TARGET / "fhir-test-server.jar"
CLASS_PATH = TARGET / "cp.txt"
STAMP = TARGET / "stamp"
ARCHIVE = TARGET / "app.jsa"

NAME = "FHIR test server"
MINIMUM_JAVA = 17
HEAP = "1500m"  # half of it is too little for R5; H2 keeps the resources of the tests in the heap as well
LONG_LIVED_HEAP = "5g"
BUILD_TIMEOUT = 1200.0
START_TIMEOUT = 150.0  # R4 takes 6 to 10 s on two idle cores, R5 twice that, and cores may be shared
REQUEST_TIMEOUT = 120.0  # the first $validate loads the definitions of FHIR

# Does not use a proxy of the environment.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class HapiServer:
    """A running server; ``base_url`` is ``http://127.0.0.1:<port>/fhir``."""

    base_url: str
    pid: int
    log_path: Path


# --- building -----------------------------------------------------------------------------------------------


def build(*, announce: bool = False) -> None:
    """Compile the server, unless ``target/`` has the result of these sources; one process at a time."""
    _require("java")
    java = _java_version()
    TARGET.mkdir(exist_ok=True)
    with FileLock(TARGET / "build.lock"):
        fingerprint = _fingerprint(java)
        if _is_built(fingerprint):
            return
        _require("javac", "jar", "mvn")
        if announce:
            print("Building the FHIR test server; the first time Maven fetches about 250 MB ...", flush=True)
        STAMP.unlink(missing_ok=True)
        ARCHIVE.unlink(missing_ok=True)
        _compile()
        _archive_classes()
        STAMP.write_text(fingerprint, encoding="utf-8")


def _require(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise ServerUnavailableError(
            f"The FHIR test server needs {', '.join(missing)} on the PATH: "
            f"Java {MINIMUM_JAVA} or newer (a JDK) and Maven. `make setup-test` installs them."
        )


def _java_version() -> str:
    """The output of ``java -version``; checks that the version is new enough."""
    # The JVM prints its version on stderr.
    text = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', text)
    if version is None or int(version[1]) < MINIMUM_JAVA:
        first_line = text.strip().splitlines()[0] if text.strip() else "nothing"
        raise ServerUnavailableError(
            f"The FHIR test server needs Java {MINIMUM_JAVA} or newer; `java -version` prints: {first_line}. "
            "`make setup-test` installs one."
        )
    return text


def _fingerprint(java: str) -> str:
    """A hash of all inputs of the build; the JVM is one, since another JVM cannot use the class archive."""
    digest = hashlib.sha256(java.encode())
    for source in [HAPI / "pom.xml", *sorted((HAPI / "src").rglob("*.java"))]:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _is_built(fingerprint: str) -> bool:
    if not all(path.exists() for path in (STAMP, JAR, CLASS_PATH)):
        return False
    if STAMP.read_text(encoding="utf-8") != fingerprint:
        return False
    # Maven's repository is outside this checkout and may have been emptied.
    return all(Path(jar).exists() for jar in CLASS_PATH.read_text(encoding="utf-8").strip().split(os.pathsep))


def _compile() -> None:
    maven = ["mvn", "--batch-mode", "--no-transfer-progress", "-Dstyle.color=never", "--quiet", "compile"]
    run_build(NAME, maven, timeout=BUILD_TIMEOUT, cwd=HAPI)
    # The JVM archives class data only from jars, not from a folder of classes.
    jar = ["jar", "--create", "--file", f"{JAR}.new", "-C", str(TARGET / "classes"), "."]
    run_build(NAME, jar, timeout=BUILD_TIMEOUT, cwd=HAPI)
    Path(f"{JAR}.new").replace(JAR)


def _archive_classes() -> None:
    """Run the server once so that the JVM archives its loaded classes: later starts take a third less time."""
    with tempfile.TemporaryDirectory(prefix="hapi-archive-") as folder:
        server = _launch(Path(folder), {"strict": "true", "owner": str(os.getpid())}, CDS="dump")
        validate(server.base_url, {"resourceType": "Patient"})
        stop(server, timeout=90)  # writing the archive takes seven seconds
    new_archive = Path(f"{ARCHIVE}.new")
    if new_archive.exists():  # without an archive the server starts as well, but more slowly
        new_archive.replace(ARCHIVE)


# --- starting and stopping ----------------------------------------------------------------------------------


@contextmanager
def run_hapi(
    *,
    version: str = "R4",
    strict: bool = True,
    wipe: bool = False,
    auth_token: str | None = None,
    client_ids: bool = True,
    long_lived: bool = False,
    db: Path | None = None,
    folder: Path | None = None,
) -> Iterator[HapiServer]:
    """Run a separate server until the end of the block; its log is kept only if a ``folder`` is given."""
    with tempfile.TemporaryDirectory(prefix="hapi-") as temporary:
        server = start(
            folder or Path(temporary),
            version=version,
            strict=strict,
            wipe=wipe,
            auth_token=auth_token,
            client_ids=client_ids,
            long_lived=long_lived,
            db=db,
        )
        try:
            yield server
        finally:
            stop(server)


def start(
    folder: Path,
    *,
    version: str = "R4",
    strict: bool = True,
    wipe: bool = False,
    auth_token: str | None = None,
    client_ids: bool = True,
    long_lived: bool = False,
    db: Path | None = None,
    owner: int | None = None,
) -> HapiServer:
    """Build the server if necessary and start it on a free port of 127.0.0.1; returns when it answers.

    Args:
        folder: for its log and its temporary files.
        version: R4 or R5.
        strict: reject unknown elements.
        wipe: permit ``$expunge`` of everything.
        auth_token: bearer token that requests must have.
        client_ids: False: the server assigns all ids and rejects those of clients, as its CapabilityStatement states.
        long_lived: start more slowly, be faster after a thousand studies, and have memory for several thousand.
        db: file that keeps the data over restarts (H2 adds a suffix); without it the data is in memory.
        owner: process with which the server ends; default: this process.
    """
    build()
    flags = {"fhir.version": version, "strict": str(strict).lower(), "wipe": str(wipe).lower()}
    flags["client.ids"] = str(client_ids).lower()
    flags["owner"] = str(owner or os.getpid())
    if auth_token is not None:
        flags["auth.token"] = auth_token
    if db is not None:
        flags["db"] = f"jdbc:h2:file:{db.resolve()}"
    environment = {"LONG_LIVED": "true", "HEAP": LONG_LIVED_HEAP} if long_lived else {}
    return _launch(folder, flags, **environment)


def _launch(folder: Path, flags: Mapping[str, str], **environment: str) -> HapiServer:
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    log_path = folder / "server.log"
    # Port 0: the server itself takes a free port; a port that is chosen before could be taken by another process.
    properties = {"port": "0", "java.io.tmpdir": str(temporary), **flags}
    process = launch(
        ["sh", str(HAPI / "run.sh"), *(f"-D{name}={value}" for name, value in properties.items())],
        log_path,
        env={**os.environ, "HEAP": HEAP, **environment},
    )
    base_url = wait_until_ready(NAME, process, log_path, _find_base_url, START_TIMEOUT)
    return HapiServer(base_url, process.pid, log_path)


def _find_base_url(log: str) -> str | None:
    port = re.search(r"^listening on port (\d+),", log, re.MULTILINE)
    base_url = f"http://127.0.0.1:{port[1]}/fhir" if port else None
    return base_url if base_url and is_answering(f"{base_url}/metadata") else None


def stop(server: HapiServer, *, timeout: float = server_process.STOP_TIMEOUT) -> None:
    """End the server, by force after ``timeout`` seconds; does nothing if it has ended already."""
    server_process.stop(server.pid, "FhirServer", timeout=timeout)


def wipe(server: HapiServer) -> None:
    """Delete everything on a server that was started with ``wipe``."""
    everything = {"resourceType": "Parameters", "parameter": [{"name": "expungeEverything", "valueBoolean": True}]}
    request = urllib.request.Request(
        f"{server.base_url}/$expunge",
        data=json.dumps(everything).encode(),
        headers={"Content-Type": "application/fhir+json"},
    )
    with _OPENER.open(request, timeout=REQUEST_TIMEOUT) as response:
        response.read()


# --- validation ---------------------------------------------------------------------------------------------


def validate(base_url: str, resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The issues with severity error or fatal that ``$validate`` reports for a resource.

    If the server cannot parse the resource, it answers 400, 412 or 422 with an OperationOutcome, whose issues are
    returned as well. Any other status raises ``urllib.error.HTTPError``.
    """
    request = urllib.request.Request(
        f"{base_url}/{resource['resourceType']}/$validate",
        data=json.dumps(resource).encode(),
        headers={"Content-Type": "application/fhir+json", "Accept": "application/fhir+json"},
    )
    outcome = _operation_outcome(request)
    return [entry for entry in outcome["issue"] if entry["severity"] in ("error", "fatal")]


def _operation_outcome(request: urllib.request.Request) -> dict[str, Any]:
    try:
        with _OPENER.open(request, timeout=REQUEST_TIMEOUT) as response:
            outcome = json.load(response)
    except urllib.error.HTTPError as error:
        if error.code not in (400, 412, 422):
            raise
        with error:
            outcome = json.load(error)
    if outcome.get("resourceType") != "OperationOutcome":
        raise ValueError(f"the answer to $validate is a {outcome.get('resourceType')}, not an OperationOutcome")
    return dict(outcome)


def main() -> None:
    """Build the server before its first use."""
    start_time = time.monotonic()
    try:
        build(announce=True)
    except ServerUnavailableError as error:
        raise SystemExit(str(error)) from error
    print(f"The FHIR test server is ready to start ({time.monotonic() - start_time:.0f} s).", flush=True)


if __name__ == "__main__":
    main()
