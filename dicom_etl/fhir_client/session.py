"""Authenticated and compressed requests over one transport, independent of FHIR.

Not here: the limit on concurrent requests (`concurrency`) and the repetition of failed ones (`retry`).
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from dicom_etl.fhir_client.auth import Authentication
from dicom_etl.fhir_client.transport import MAX_ANSWER_BYTES, Answer, Transport

_MIN_COMPRESSED_BYTES = 1_000  # smaller bodies are not compressed
# text with which servers and gateways that do not inflate reject gzip, whose first bytes are 1F 8B (RFC 1952, 2.3.1)
_NOT_INFLATED = re.compile(rb"gzip|compress|content-encoding|pars|malformed|invalid json|unexpected|0x1f|\\u001f", re.I)
_EXAMINED_BYTES = 4_000


class AuthenticatedSession:
    """Sends requests with the headers of an authentication; open it with `async with`."""

    def __init__(self, transport: Transport, authentication: Authentication) -> None:
        self._transport, self._authentication = transport, authentication
        self._is_compressing = True
        self._has_compressed = False  # the server accepted a compressed body before

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, class_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(class_, error, trace)

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        max_bytes: int = MAX_ANSWER_BYTES,
        timeout_seconds: float | None = None,
        compress: bool = True,
    ) -> Answer:
        """The answer to a request, whatever its status.

        If the server does not accept a compressed body, the request is sent again uncompressed, and later requests
        are not compressed.

        Args:
            method: of HTTP.
            url: percent-encoded; sent as it is.
            headers: of the request, without those of the authentication.
            body: of the request.
            max_bytes: largest body of an answer, inflated.
            timeout_seconds: another limit than that of the transport.
            compress: whether the body may be compressed.

        Raises:
            FhirError: as `Transport.send`, or no token was issued.
        """

        async def send_body(body: bytes | None, headers: Mapping[str, str]) -> Answer:
            return await self._authenticate_and_send(
                method, url, headers, body, max_bytes=max_bytes, timeout_seconds=timeout_seconds
            )

        if body is None or not (compress and self._is_compressing) or len(body) <= _MIN_COMPRESSED_BYTES:
            return await send_body(body, headers)
        compressed = gzip.compress(body, compresslevel=1, mtime=0)
        answer = await send_body(compressed, {**headers, "Content-Encoding": "gzip"})
        if not self._may_refuse_compression(answer):
            self._has_compressed = self._has_compressed or 200 <= answer.status < 300
            return answer
        plain_answer = await send_body(body, headers)
        if answer.status == 415 or plain_answer.status != answer.status:
            self._is_compressing = False
        return plain_answer

    def _may_refuse_compression(self, answer: Answer) -> bool:
        if answer.status == 415:  # RFC 9110, 15.5.16: also for an unsupported content encoding
            return True
        if answer.status != 400 or self._has_compressed:
            return False
        return bool(_NOT_INFLATED.search(answer.body[:_EXAMINED_BYTES]))

    async def _authenticate_and_send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        max_bytes: int,
        timeout_seconds: float | None,
    ) -> Answer:
        """Send the request; send it once more if the credentials were refused and could be renewed."""
        login = await self._authentication.headers(self._transport.send)
        answer = await self._transport.send(
            method, url, {**headers, **login}, body, max_bytes=max_bytes, timeout_seconds=timeout_seconds
        )
        if answer.status == 401 and await self._authentication.renew(login):
            login = await self._authentication.headers(self._transport.send)
            answer = await self._transport.send(
                method, url, {**headers, **login}, body, max_bytes=max_bytes, timeout_seconds=timeout_seconds
            )
        return answer
