"""The name of a server in the lake: short, readable, the same for every way to write its address."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from dicom_etl.server.auth import without_credentials

_PORTS = {"http": 80, "https": 443}


def server_name(url: str) -> str:
    """`host_port_path` of a base URL, without credentials (`http://hapi:8080/fhir/` is `hapi_8080_fhir`)."""
    parts = urlsplit(without_credentials(url))
    segments = [segment for segment in parts.path.split("/") if segment]
    words = [parts.hostname or "", str(parts.port or _PORTS.get(parts.scheme, 0)), *segments]
    name = "_".join(words)
    if any("_" in word for word in words):  # else a/b and a_b would share a ledger
        name += f"-{hashlib.sha256('/'.join(words).encode()).hexdigest()[:8]}"
    return name
