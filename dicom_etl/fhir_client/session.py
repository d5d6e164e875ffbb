"""Requests that are authenticated and compressed, over one transport.

Nothing here knows FHIR. Not here: how many requests at once (`limit`) and when again (`retry`).
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from dicom_etl.fhir_client.auth import Authentication
from dicom_etl.fhir_client.transport import MAX_ANSWER_BYTES, Answer, Transport

_WORTH_COMPRESSING = 1_000  # bytes
# what servers and gateways that do not inflate say of a gzipped body, whose first bytes are 1F 8B (RFC 1952, 2.3.1)
_NOT_INFLATED = re.compile(rb"gzip|compress|content-encoding|pars|malformed|invalid json|unexpected|0x1f|\\u001f", re.I)
_LOOKED_AT = 4_000  # bytes


class AuthenticatedSession:
    """Sends requests with the headers of an authentication; open it with `async with`."""

    def __init__(self, transport: Transport, authentication: Authentication) -> None:
        self._transport, self._authentication = transport, authentication
        self._compresses = True
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
        compresses: bool = True,
    ) -> Answer:
        """The answer to a request, whatever its status.

        A body is compressed unless the server turns out not to accept that: then it is sent again without, and so is
        every later one.

        Args:
            method: of HTTP.
            url: percent-encoded; sent as it is.
            headers: of the request, without those of the authentication.
            body: of the request.
            max_bytes: largest body of an answer, inflated.
            timeout_seconds: another limit than that of the transport.
            compresses: whether the body may be compressed.

        Raises:
            FhirError: as `Transport.send`, or no token was issued.
        """

        async def send_body(body: bytes | None, headers: Mapping[str, str]) -> Answer:
            return await self._authenticate_and_send(
                method, url, headers, body, max_bytes=max_bytes, timeout_seconds=timeout_seconds
            )

        if body is None or not (compresses and self._compresses) or len(body) <= _WORTH_COMPRESSING:
            return await send_body(body, headers)
        compressed = gzip.compress(body, compresslevel=1, mtime=0)
        answer = await send_body(compressed, {**headers, "Content-Encoding": "gzip"})
        if not self._may_refuse_compression(answer):
            self._has_compressed = self._has_compressed or 200 <= answer.status < 300
            return answer
        plain_answer = await send_body(body, headers)
        if answer.status == 415 or plain_answer.status != answer.status:
            self._compresses = False
        return plain_answer

    def _may_refuse_compression(self, answer: Answer) -> bool:
        if answer.status == 415:  # RFC 9110, 15.5.16: also the answer to an encoding that the server does not accept
            return True
        if answer.status != 400 or self._has_compressed:
            return False
        return bool(_NOT_INFLATED.search(answer.body[:_LOOKED_AT]))

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
        """Send once; and once more, if the credentials were refused and could be renewed."""
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
