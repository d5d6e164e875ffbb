"""Stands for an authorization server (Keycloak and its kind): gives tokens to a client that it knows."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qs, quote_plus

import orjson

from tests.support.proxy import ReceivedRequest, Reply

CLIENT = "etl"
SECRET = "wombat & quokka"  # of the client; written as a form field it looks different


class AuthorizationServer:
    """Its `rule` is that of its token endpoint; its tokens are `token-1`, `token-2` and so on, unless one is given."""

    def __init__(self, token: str | None = None, secret: str = SECRET, **more: Any) -> None:
        self._token, self._more = token, more
        self._pair = base64.b64encode(f"{CLIENT}:{quote_plus(secret)}".encode()).decode()
        self.given: list[str] = []
        self.forms: list[dict[str, list[str]]] = []

    def rule(self, asked: ReceivedRequest) -> Reply:
        """The answer to a request for a token; a refusal repeats what it was sent."""
        login = asked.headers.get("Authorization")
        if asked.method != "POST" or login != f"Basic {self._pair}":
            return Reply(401, orjson.dumps({"error": "invalid_client", "error_description": f"not {login}"}))
        self.forms.append(parse_qs(asked.body.decode()))
        self.given.append(self._token or f"token-{len(self.given) + 1}")
        answer = {"access_token": self.given[-1], "token_type": "Bearer"} | self._more
        return Reply(200, orjson.dumps(answer))
