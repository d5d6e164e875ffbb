"""The process of a test server: start, wait for its first answer, and stop by process id.

The module of each server has its command and recognizes its answers.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["ServerUnavailableError", "connects", "is_answering", "launch", "run_build", "stop", "wait_until_ready"]

STOP_TIMEOUT = 5.0  # seconds; HAPI does not end while connections are open, and its data need not be kept

# Does not use a proxy of the environment.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# Servers that this process started. A child that has not been waited for keeps its id, so that no other process has it.
_children: dict[int, subprocess.Popen[bytes]] = {}


class ServerUnavailableError(RuntimeError):
    """The server cannot be built or started; the message says what is missing."""


def run_build(name: str, command: Sequence[str], *, timeout: float, **options: Any) -> None:
    """Run a step of the build of the server `name`; `options` are those of `subprocess.run`.

    Raises:
        ServerUnavailableError: the step failed; the message has the end of its output.
    """
    try:
        build = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            **options,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerUnavailableError(
            f"Building the {name}: `{' '.join(command)}` did not end within {timeout:.0f} s."
        ) from error
    if build.returncode:
        raise ServerUnavailableError(
            f"The {name} could not be built: `{' '.join(command)}` ended with {build.returncode}. "
            f"`make setup-test` installs its requirements. The end of the output:\n{_last_lines(build.stdout)}"
        )


def launch(command: Sequence[str], log_path: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a server that writes to `log_path`; `options` are those of `subprocess.Popen`."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **options)
    _children[process.pid] = process
    return process


def wait_until_ready(
    name: str,
    process: subprocess.Popen[bytes],
    log_path: Path,
    find_address: Callable[[str], str | None],
    timeout: float,
) -> str:
    """Wait until `find_address` finds the server's address in the text of the log; otherwise stop the server.

    Raises:
        ServerUnavailableError: the server ended or took too long; the message has the end of its log.
    """
    deadline = time.monotonic() + timeout
    problem = f"was not ready within {timeout:.0f} s"
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                problem = f"ended with {process.returncode} while starting"
                break
            address = find_address(log_path.read_text(errors="replace"))
            if address is not None:
                return address
            time.sleep(0.05)
        log = _last_lines(log_path.read_text(errors="replace"))
        raise ServerUnavailableError(f"The {name} {problem}; the end of its log:\n{log}")
    except BaseException:
        _stop_child(process, signal.SIGTERM, STOP_TIMEOUT)
        raise


def is_answering(url: str) -> bool:
    """Whether a GET of the URL succeeds."""
    try:
        with _OPENER.open(url, timeout=30) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):  # URLError and HTTPError are OSErrors
        return False


def stop(pid: int, program: str, *, number: int = signal.SIGTERM, timeout: float = STOP_TIMEOUT) -> None:
    """End a server; does nothing if it has ended already.

    Args:
        pid: its process id; another process may have started it.
        program: text in its command line; a process without it is not this server.
        number: signal that ends it.
        timeout: seconds until it is killed.
    """
    child = _children.get(pid)
    if child is not None:
        _stop_child(child, number, timeout)
    else:
        _stop_other(pid, program, number, timeout)


def _stop_child(process: subprocess.Popen[bytes], number: int, timeout: float) -> None:
    process.send_signal(number)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _children.pop(process.pid, None)


def _stop_other(pid: int, program: str, number: int, timeout: float) -> None:
    for signal_number, seconds in ((number, timeout), (signal.SIGKILL, 5.0)):
        if not _is_running(pid, program):
            return
        os.kill(pid, signal_number)
        deadline = time.monotonic() + seconds
        while _is_running(pid, program) and time.monotonic() < deadline:
            time.sleep(0.05)


def _is_running(pid: int, program: str) -> bool:
    """Whether the process is this server, and neither a zombie nor another program that has its id now."""
    try:
        if Path("/proc/self").exists():
            return program.encode() in Path("/proc", str(pid), "cmdline").read_bytes()
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True


def connects(host: str, port: int) -> bool:
    """Whether a process accepts connections at this address."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def _last_lines(text: str, lines: int = 40) -> str:
    return "\n".join(text.splitlines()[-lines:])
