"""Limits on answers: size before and after inflating, time, and invalid headers.

The servers are plain sockets, since no web server sends such bytes.
"""

import asyncio
import gzip
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import orjson
import pytest

from dicom_etl.fhir_client import (
    BusyError,
    FhirClient,
    FhirError,
    InvalidAnswerError,
    NotFoundError,
    ServerFailureError,
    TimedOutError,
    UnreachableError,
)
from dicom_etl.fhir_client.transport import Answer, Body, Transport, parse_retry_after
from tests.support.fhir_answers import get_error, json_reply, patient, run, run_raw_server
from tests.support.proxy import run_proxy

Send = Callable[[bytes], object]
PATIENT = orjson.dumps(patient())


async def read(client: FhirClient) -> object:
    return await client.read("Patient", "a")


def ask(answer: Callable[[Send], None], *, max_bytes: int = 100_000, seconds: float = 20) -> Answer | FhirError:
    """The answer to a request with these limits, or its error."""

    async def whole(url: str) -> Answer:
        async with Transport(url, timeout_seconds=seconds) as transport:
            return await transport.send("GET", url, {}, max_bytes=max_bytes)

    with run_raw_server(answer) as url:
        try:
            return asyncio.run(whole(url))
        except FhirError as error:
            return error


def reply(body: bytes, *headers: str, status: int = 200) -> Callable[[Send], None]:
    lines = "".join(f"{header}\r\n" for header in headers).encode(errors="surrogateescape")
    return lambda send: send(b"HTTP/1.1 %d X\r\n" % status + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body)  # type: ignore[return-value]


def endless(chunk: bytes, *headers: str, status: int = 200) -> Callable[[Send], None]:
    def answer(send: Send) -> None:
        lines = "".join(f"{header}\r\n" for header in headers).encode()
        send(b"HTTP/1.1 %d X\r\n" % status + lines + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            send(b"%x\r\n" % len(chunk) + chunk + b"\r\n")

    return answer


MEASURE = """
import asyncio, resource, sys
from dicom_etl.fhir_client import FhirClient, InvalidAnswerError

async def main():
    async def no_pause(_): return None
    async with FhirClient(sys.argv[1], sleep=no_pause) as client:
        try:
            await client.{call}
        except InvalidAnswerError as error:
            print(error)
    await asyncio.sleep(0)

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
asyncio.run(main())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


class TestSize:
    def test_a_body_may_have_the_maximal_size_and_no_more(self) -> None:
        largest, too_large = ask(reply(b"x" * 1_000), max_bytes=1_000), ask(reply(b"x" * 1_001), max_bytes=1_000)
        assert isinstance(largest, Answer)
        assert len(largest.body) == 1_000
        assert isinstance(too_large, InvalidAnswerError)
        assert str(too_large) == "HTTP 200: the answer cannot be read: it has more than 1,000 bytes"

    @pytest.mark.parametrize("encoding", [(), ("Content-Encoding: gzip",), ("Content-Encoding: deflate",)])
    def test_an_endless_body_stops_at_the_limit(self, encoding: tuple[str, ...]) -> None:
        compressor = zlib.compressobj(wbits=31 if "gzip" in str(encoding) else 15)
        first = (
            compressor.compress(b"x" * 1_000_000) + compressor.flush(zlib.Z_SYNC_FLUSH) if encoding else b"x" * 9_000
        )
        assert isinstance(ask(endless(first, *encoding)), InvalidAnswerError)

    def test_an_endless_gzip_header_stops_at_the_limit(self) -> None:
        """The file name in it never ends: much is received, and nothing is inflated."""
        is_sent = False

        def answer(send: Send) -> None:
            nonlocal is_sent
            send(b"HTTP/1.1 200 X\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
            send(b"a\r\n\x1f\x8b\x08\x08\0\0\0\0\0\x03\r\n")
            is_sent = True
            while True:
                send(b"2000\r\n" + b"n" * 0x2000 + b"\r\n")

        assert isinstance(ask(answer), InvalidAnswerError)
        assert is_sent

    def test_endless_headers_stop(self) -> None:
        def answer(send: Send) -> None:
            send(b"HTTP/1.1 200 X\r\n")
            while True:
                send(b"X-Header: " + b"x" * 60_000 + b"\r\n")

        assert isinstance(ask(answer), UnreachableError)

    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("gzip", gzip.compress(PATIENT)),
            ("x-gzip", gzip.compress(PATIENT)),
            ("GZIP", gzip.compress(PATIENT)),
            ("identity, gzip", gzip.compress(PATIENT)),
            ("gzip", gzip.compress(PATIENT[:9]) + gzip.compress(PATIENT[9:])),  # two members (RFC 1952, 2.2)
            ("deflate", zlib.compress(PATIENT)),
            ("deflate", zlib.compress(PATIENT)[2:-4]),  # without the header of zlib, as some servers send it
            ("identity", PATIENT),
            ("", PATIENT),
        ],
        ids=range(9),
    )
    def test_supported_encodings_are_inflated(self, encoding: str, body: bytes) -> None:
        answer = ask(reply(body, f"Content-Encoding: {encoding}"))
        assert isinstance(answer, Answer)
        assert answer.body == PATIENT

    @pytest.mark.parametrize(
        ("encoding", "body", "problem"),
        [
            ("br", PATIENT, "encoding is unknown"),
            ("gzip, gzip", gzip.compress(gzip.compress(PATIENT)), "encoding is unknown"),
            ("gzip", PATIENT, "is damaged"),
            ("gzip", gzip.compress(PATIENT)[:-9], "is not complete"),
            ("gzip", gzip.compress(PATIENT) + b"rest", "is damaged"),
            ("deflate", b"\xff" * 99, "is damaged"),
        ],
        ids=range(6),
    )
    def test_other_encodings_are_invalid(self, encoding: str, body: bytes, problem: str) -> None:
        error = ask(reply(body, f"Content-Encoding: {encoding}"))
        assert isinstance(error, InvalidAnswerError)
        assert problem in str(error)
        assert error.__context__ is None

    def test_a_body_may_arrive_byte_by_byte(self) -> None:
        for encoding, whole in (("gzip", gzip.compress(PATIENT) * 2), ("deflate", zlib.compress(PATIENT))):
            body = Body(200, encoding, 10_000)
            for byte in whole:
                body.add(bytes([byte]))
            assert body.finish() == PATIENT * (2 if encoding == "gzip" else 1)

    @pytest.mark.parametrize(
        "make", [lambda: reply(b"x" * 3_000_000, status=500), lambda: endless(b"x" * 9_000, status=500)]
    )
    def test_a_failure_has_its_status_whatever_its_body(self, make: Callable[[], Callable[[Send], None]]) -> None:
        with run_raw_server(make()) as url:
            error = get_error(url, read, retry_seconds=0)
        assert type(error) is ServerFailureError
        with run_raw_server(reply(b"\x1f\x8bno", "Content-Encoding: gzip", status=404)) as url:
            assert type(get_error(url, read)) is NotFoundError  # without is_confirmed, which an empty body would mean

    @pytest.mark.parametrize(
        ("call", "megabytes", "limit"),
        [("read('Patient', 'a')", "32,000,000", 160), ("capabilities()", "16,000,000", 60)],
    )
    def test_a_gzip_bomb_needs_no_more_memory_than_the_limit(self, call: str, megabytes: str, limit: int) -> None:
        """400 MB in 400 kB; the memory is that of another process, in MB."""
        compressor = zlib.compressobj(6, wbits=31)
        zeros = bytes(10_000_000)
        bomb = b"".join(compressor.compress(zeros) for _ in range(40)) + compressor.flush()
        with run_raw_server(reply(bomb, "Content-Encoding: gzip")) as url:
            run = subprocess.run(
                [sys.executable, "-c", MEASURE.format(call=call), url],
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
                cwd=Path(__file__).parents[2],
            )
        message, memory = run.stdout.splitlines()
        assert message == f"HTTP 200: the answer cannot be read: it has more than {megabytes} bytes"
        assert int(memory) < limit


class TestTime:
    def test_the_time_limit_includes_the_body(self) -> None:
        """A slow body keeps the connection alive, but the request ends after the limit."""

        def drip(send: Send) -> None:
            send(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n")
            while True:
                send(b"x")
                time.sleep(0.02)

        error = ask(drip, seconds=0.3)
        assert type(error) is TimedOutError
        assert "did not answer within 0.3 s" in str(error)

    def test_an_incomplete_body_is_a_lost_connection(self) -> None:
        error = ask(lambda send: send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"))  # type: ignore[arg-type, return-value]
        assert type(error) is UnreachableError
        assert error.may_have_arrived

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0" * 50,
            b"SSH-2.0-OpenSSH\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        ],
        ids=["nothing", "zeros", "SSH", "a status that is not a number", "a length that is not a number"],
    )
    def test_an_answer_that_is_not_http_is_a_lost_connection(self, content: bytes) -> None:
        assert type(ask(lambda send: send(content))) is UnreachableError  # type: ignore[arg-type, return-value]


class TestHeaders:
    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            (None, None), ("7", 7), ("0", 0), ("-5", 0), ("2.5", 2.5), ("299", 299), ("301", 300), ("1e9", 300),
            ("inf", 300), ("-inf", 0), ("nan", None), ("soon", None), ("", None), ("é", None), ("9" * 400, 300),
            ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 21 Oct 2015 07:28:00 -0000", 0), ("Wed, 99 Oct 2015", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 300), ("Mon, 01 Jan 99999 00:00:00 GMT", None), (",;" * 99, None),
        ],
    )  # fmt: skip
    def test_retry_after_is_0_to_300_seconds_or_none(self, header: str | None, seconds: float | None) -> None:
        assert parse_retry_after(header) == seconds

    def test_retry_after_may_be_a_date(self) -> None:
        soon = datetime.now(UTC) + timedelta(seconds=100)
        assert 90 < (parse_retry_after(format_datetime(soon, usegmt=True)) or 0) <= 100

    def test_invalid_headers_are_ignored(self) -> None:
        headers = (
            "Retry-After: \udcff\udcfe", "ETag: W/\"1\"", "ETag: \"\udcff", "Location: \udcff\udcff/Patient/a",
            "Set-Cookie: a=\udcff; b", "Content-Type: ;;;charset=\udcff", "Link: <", "X: \t",
        )  # fmt: skip
        answer = ask(reply(PATIENT, *headers))
        assert isinstance(answer, Answer)
        assert (answer.body, answer.etag, answer.retry_after) == (PATIENT, "", None)
        with run_raw_server(reply(b"", *headers, status=429)) as url:
            assert type(get_error(url, read, retry_seconds=0)) is BusyError

    def test_cookies_are_not_kept(self) -> None:
        async def twice(client: FhirClient) -> None:
            await read(client)
            await read(client)

        with run_proxy(rule=lambda _: json_reply(patient(), **{"Set-Cookie": "session=1"})) as server:
            run(server.url, twice)
            received = [request.headers.get("Cookie") for request in server.requests]
        assert received == [None, None]
