"""A fake OAuth2 authorization server (such as Keycloak) that issues tokens to one client."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qs, quote_plus

import orjson

from tests.support.proxy import ReceivedRequest, Reply

CLIENT = "etl"
SECRET = "wombat & quokka"  # of the client; encoded as a form field it has other characters


class AuthorizationServer:
    """`rule` answers requests to the token endpoint; the tokens are `token-1`, `token-2`, ..., or always `token`."""

    def __init__(self, token: str | None = None, secret: str = SECRET, **more: Any) -> None:
        self._token, self._more = token, more
        self._pair = base64.b64encode(f"{CLIENT}:{quote_plus(secret)}".encode()).decode()
        self.issued: list[str] = []
        self.forms: list[dict[str, list[str]]] = []

    def rule(self, request: ReceivedRequest) -> Reply:
        """The answer to a request for a token; a refusal repeats the credentials."""
        login = request.headers.get("Authorization")
        if request.method != "POST" or login != f"Basic {self._pair}":
            return Reply(401, orjson.dumps({"error": "invalid_client", "error_description": f"not {login}"}))
        self.forms.append(parse_qs(request.body.decode()))
        self.issued.append(self._token or f"token-{len(self.issued) + 1}")
        answer = {"access_token": self.issued[-1], "token_type": "Bearer"} | self._more
        return Reply(200, orjson.dumps(answer))
