"""Addresses of servers: without credentials, and the credentials by themselves."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit, urlunsplit


def parse_credentials(url: str) -> tuple[str, str] | None:
    """Username and password of an address; None where it has none."""
    parts = urlsplit(url)
    return None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))


def strip_credentials(url: str) -> str:
    """An address without username and password, query, and slash at its end."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
