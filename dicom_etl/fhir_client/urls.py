"""Addresses of servers, and the credentials in them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit, urlunsplit


def parse_credentials(url: str) -> tuple[str, str] | None:
    """Username and password in an address; None if it has none."""
    parts = urlsplit(url)
    return None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))


def strip_credentials(url: str) -> str:
    """The address without username, password, query and final slash."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
