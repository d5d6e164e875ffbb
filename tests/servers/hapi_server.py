"""Builds, starts and stops the HAPI FHIR server under ``hapi/``, and asks it whether a resource is valid.

Nothing here knows pytest: the fixtures, and what makes all workers of a run share one server, are in
``plugin.py``. ``python -m tests.servers.hapi_server`` builds the server ahead of the tests.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
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

__all__ = ["HapiServer", "ServerUnavailableError", "build", "running_hapi", "start", "stop", "validate"]

HAPI = Path(__file__).with_name("hapi")
TARGET = HAPI / "target"
JAR = TARGET / "fhir-test-server.jar"
CLASS_PATH = TARGET / "cp.txt"
STAMP = TARGET / "stamp"
ARCHIVE = TARGET / "app.jsa"

MINIMUM_JAVA = 17
HEAP = "1500m"  # R5 does not fit into half of it; H2 keeps the tests' resources in the heap as well
LONG_LIVED_HEAP = "5g"
BUILD_TIMEOUT = 1200.0
START_TIMEOUT = 150.0  # R4 takes 6 to 10 s on two idle cores, R5 twice that, and cores may be shared
STOP_TIMEOUT = 20.0
REQUEST_TIMEOUT = 120.0  # the first $validate loads the definitions of FHIR

# A proxy of the environment must not see requests for 127.0.0.1.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# Servers that this process started: waiting for a child reaps it, and keeps its id from being used again.
_children: dict[int, subprocess.Popen[bytes]] = {}


class ServerUnavailableError(RuntimeError):
    """The server cannot be built or started; the message says what is missing."""


@dataclass(frozen=True)
class HapiServer:
    """A server that answers under ``base_url`` (``http://127.0.0.1:<port>/fhir``)."""

    base_url: str
    pid: int
    log_path: Path


# --- building -----------------------------------------------------------------------------------------------


def build(*, announce: bool = False) -> None:
    """Compile the server, unless ``target/`` holds what these sources make; one process at a time."""
    _require("java")
    java = _java_version()
    TARGET.mkdir(exist_ok=True)
    with FileLock(TARGET / "build.lock"):
        wanted = _fingerprint(java)
        if _is_built(wanted):
            return
        _require("javac", "jar", "mvn")
        if announce:
            print("Building the FHIR test server; the first time Maven fetches about 250 MB ...", flush=True)
        STAMP.unlink(missing_ok=True)
        ARCHIVE.unlink(missing_ok=True)
        _compile()
        _archive_classes()
        STAMP.write_text(wanted, encoding="utf-8")


def _require(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise ServerUnavailableError(
            f"The FHIR test server needs {', '.join(missing)} on the PATH: "
            f"Java {MINIMUM_JAVA} or newer (a JDK) and Maven. `make setup-test` installs them."
        )


def _java_version() -> str:
    """What ``java -version`` prints, once it is known to be new enough."""
    # The JVM prints its version on stderr.
    text = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', text)
    if found is None or int(found[1]) < MINIMUM_JAVA:
        said = text.strip().splitlines()[0] if text.strip() else "nothing"
        raise ServerUnavailableError(
            f"The FHIR test server needs Java {MINIMUM_JAVA} or newer; `java -version` says: {said}. "
            "`make setup-test` installs one."
        )
    return text


def _fingerprint(java: str) -> str:
    """A hash of all that the build is made from; another JVM cannot use the class archive of this one."""
    digest = hashlib.sha256(java.encode())
    for source in [HAPI / "pom.xml", *sorted((HAPI / "src").rglob("*.java"))]:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _is_built(wanted: str) -> bool:
    if not all(made.exists() for made in (STAMP, JAR, CLASS_PATH)):
        return False
    if STAMP.read_text(encoding="utf-8") != wanted:
        return False
    # Maven's repository lies outside this checkout and may have been emptied since.
    return all(Path(jar).exists() for jar in CLASS_PATH.read_text(encoding="utf-8").strip().split(os.pathsep))


def _compile() -> None:
    _run(["mvn", "--batch-mode", "--no-transfer-progress", "-Dstyle.color=never", "--quiet", "compile"])
    # Class data can be archived from jars alone, not from a folder of classes.
    _run(["jar", "--create", "--file", f"{JAR}.new", "-C", str(TARGET / "classes"), "."])
    Path(f"{JAR}.new").replace(JAR)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=HAPI,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerUnavailableError(
            f"Building the FHIR test server: `{' '.join(command)}` did not end within {BUILD_TIMEOUT:.0f} s."
        ) from error
    if done.returncode:
        raise ServerUnavailableError(
            f"The FHIR test server could not be built: `{' '.join(command)}` in {HAPI} ended with "
            f"{done.returncode}. `make setup-test` installs what it needs. The end of its output:\n"
            f"{_end_of(done.stdout)}"
        )


def _archive_classes() -> None:
    """Run the server once and let the JVM write down its loaded classes: later starts take a third less."""
    with tempfile.TemporaryDirectory(prefix="hapi-archive-") as folder:
        server = _launch(Path(folder), {"strict": "true", "owner": str(os.getpid())}, CDS="dump")
        validate(server.base_url, {"resourceType": "Patient"})
        stop(server, timeout=90)  # writing the archive takes seven seconds
    written = Path(f"{ARCHIVE}.new")
    if written.exists():  # without an archive the server starts as well, only slower
        written.replace(ARCHIVE)


# --- starting and stopping ----------------------------------------------------------------------------------


@contextmanager
def running_hapi(
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
    """A server of one's own, stopped at the end; ``folder`` keeps its log, otherwise the log goes with it."""
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
    """Build the server if need be and start it on a free port of 127.0.0.1; returns when it answers.

    ``folder`` receives its log and its temporary files. ``db`` is a file that keeps the data over restarts
    (H2 adds a suffix); without it the data lives in memory. ``strict`` refuses unknown elements, ``wipe``
    allows ``$expunge`` of everything. Without ``client_ids`` it gives every new resource an id of its own and
    refuses those of clients, and its CapabilityStatement says so. A ``long_lived`` one starts slowly, is faster after a
    thousand studies, as those of hospitals are, and has room for several thousand of them. The server ends by itself
    when the process ``owner`` does, which is this process unless told otherwise.
    """
    build()
    flags = {"fhir.version": version, "strict": str(strict).lower(), "wipe": str(wipe).lower()}
    flags["client.ids"] = str(client_ids).lower()
    flags["owner"] = str(owner or os.getpid())
    if auth_token is not None:
        flags["auth.token"] = auth_token
    if db is not None:
        flags["db"] = f"jdbc:h2:file:{db.resolve()}"
    long = {"LONG_LIVED": "true", "HEAP": LONG_LIVED_HEAP} if long_lived else {}
    return _launch(folder, flags, **long)


def _launch(folder: Path, flags: Mapping[str, str], **environment: str) -> HapiServer:
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    log_path = folder / "server.log"
    # Port 0: the server takes a free port itself, where a port that is looked for first could be lost again.
    properties = {"port": "0", "java.io.tmpdir": str(temporary), **flags}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["sh", str(HAPI / "run.sh"), *(f"-D{name}={value}" for name, value in properties.items())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HEAP": HEAP, **environment},
        )
    _children[process.pid] = process
    try:
        base_url = _wait_until_ready(process, log_path)
    except BaseException:
        _stop_child(process, STOP_TIMEOUT)
        raise
    return HapiServer(base_url, process.pid, log_path)


def _wait_until_ready(process: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerUnavailableError(
                f"The FHIR test server ended with {process.returncode} at its start; {_end_of_log(log_path)}"
            )
        base_url = _base_url(log_path)
        if base_url is not None and _answers(base_url):
            return base_url
        time.sleep(0.1)
    raise ServerUnavailableError(
        f"The FHIR test server did not answer GET /fhir/metadata within {START_TIMEOUT:.0f} s; {_end_of_log(log_path)}"
    )


def _base_url(log_path: Path) -> str | None:
    found = re.search(r"^listening on port (\d+),", log_path.read_text(errors="replace"), re.MULTILINE)
    return f"http://127.0.0.1:{found[1]}/fhir" if found else None


def _answers(base_url: str) -> bool:
    try:
        with _OPENER.open(f"{base_url}/metadata", timeout=30) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):  # URLError and HTTPError are OSErrors
        return False


def _end_of_log(log_path: Path) -> str:
    return f"the end of its log:\n{_end_of(log_path.read_text(errors='replace'))}"


def _end_of(text: str, lines: int = 40) -> str:
    return "\n".join(text.splitlines()[-lines:])


def stop(server: HapiServer, *, timeout: float = STOP_TIMEOUT) -> None:
    """End the server, by force after ``timeout`` seconds; a server that is gone already is no error."""
    child = _children.get(server.pid)
    if child is not None:
        _stop_child(child, timeout)
    else:
        _stop_other(server.pid, timeout)


def _stop_child(process: subprocess.Popen[bytes], timeout: float) -> None:
    process.terminate()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _children.pop(process.pid, None)


def _stop_other(pid: int, timeout: float) -> None:
    for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
        if not _runs(pid):
            return
        os.kill(pid, number)
        deadline = time.monotonic() + patience
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.1)


def _runs(pid: int) -> bool:
    """Whether ``pid`` is one of these servers: not ended but unreaped, and not another program by now."""
    proc = Path("/proc", str(pid))
    try:
        if Path("/proc/self").exists():
            return b"FhirServer" in (proc / "cmdline").read_bytes()
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


# --- asking -------------------------------------------------------------------------------------------------


def validate(base_url: str, resource: dict[str, Any]) -> list[dict[str, Any]]:
    """What ``$validate`` says against a resource: the entries of its outcome with severity error or fatal.

    A resource that the server cannot even parse is answered with 400, 412 or 422 and an OperationOutcome;
    that is an answer like any other. Everything else raises ``urllib.error.HTTPError``.
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
        raise ValueError(f"$validate was answered with {outcome.get('resourceType')}, no OperationOutcome")
    return dict(outcome)


def main() -> None:
    """Build the server ahead of its first use."""
    began = time.monotonic()
    try:
        build(announce=True)
    except ServerUnavailableError as error:
        raise SystemExit(str(error)) from error
    print(f"The FHIR test server is ready to start ({time.monotonic() - began:.0f} s).", flush=True)


if __name__ == "__main__":
    main()
