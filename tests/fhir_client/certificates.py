"""Certificates of a test authority that no system trusts, created with the command `openssl`."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority; its files are in `folder`."""

    folder: Path

    @cached_property
    def ca_file(self) -> str:
        """The PEM file with its certificate."""
        self._openssl("ca", "-subj", "/CN=Authority of a test", "-addext", "basicConstraints=critical,CA:true")
        return str(self.folder / "ca.pem")

    def server(self, name: str = "IP:127.0.0.1") -> ssl.SSLContext:
        """The TLS context of a server with this subject alternative name."""
        stem = f"server-{len(list(self.folder.iterdir()))}"
        signed_by = ("-CA", self.ca_file, "-CAkey", str(self.folder / "ca.key"))
        self._openssl(stem, "-subj", "/CN=a server", "-addext", f"subjectAltName={name}", *signed_by)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        return context

    def _openssl(self, stem: str, *more: str) -> None:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2".split()
        files = ("-keyout", str(self.folder / f"{stem}.key"), "-out", str(self.folder / f"{stem}.pem"))
        subprocess.run([*command, *files, *more], check=True, capture_output=True, timeout=60)
