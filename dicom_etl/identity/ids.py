"""Resource ids: equal in every run and on every machine, and computable only with the secret key.

An id is a UUIDv8 (RFC 9562, section 5.8) whose bits are from an HMAC-SHA-256 of the namespace, the resource type and
the business key of the resource. Without the secret key, a known PatientID does not reveal the id of its Patient. If
no secret key is configured, it is derived from the namespace, and anyone who knows the namespace can compute ids.

Not here: the setting of the secret key (`settings`).
"""

from __future__ import annotations

import hmac
import uuid
from dataclasses import dataclass, field, replace

_DERIVATION = b"dicom-etl"  # public: a key that is derived from a namespace is not secret
_FINGERPRINT_DIGITS = 16


class _Key:
    """A secret key. A plain class, so that neither `repr` nor `dataclasses.asdict` can show its bytes."""

    __slots__ = ("_bytes",)

    def __init__(self, key: bytes) -> None:
        self._bytes = key

    def __repr__(self) -> str:
        return "<key>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and hmac.compare_digest(self._bytes, other._bytes)

    def __hash__(self) -> int:
        return hash(self._bytes)

    def digest(self, *parts: str) -> bytes:
        """The HMAC-SHA-256 of parts, each as its length in bytes (four bytes, big-endian) and its UTF-8."""
        # file names may contain bytes that are not UTF-8
        encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
        return hmac.digest(self._bytes, b"".join(len(part).to_bytes(4, "big") + part for part in encoded), "sha256")

    def subkey(self, label: str) -> _Key:
        """The key for one purpose: values computed with one reveal nothing about those of another."""
        return _Key(hmac.digest(self._bytes, label.encode("utf-8", "surrogatepass"), "sha256"))


@dataclass(frozen=True)
class ResourceIds:
    """Resource ids, and the digests that represent withdrawn subjects, in one namespace with one secret key."""

    namespace: str
    is_guessable: bool  # the key is derived from the namespace
    key_fingerprint: str  # distinguishes keys and reveals nothing else about them
    _id_key: _Key = field(repr=False)
    _withdrawal_key: _Key = field(repr=False)

    @classmethod
    def from_key(cls, namespace: str, key: bytes | None) -> ResourceIds:
        """The ids of a namespace under a secret key; None: one that is derived from the namespace."""
        secret = _Key(_DERIVATION).subkey(namespace) if key is None else _Key(key)
        fingerprint = secret.subkey("dicom-etl key fingerprint").digest().hex()[:_FINGERPRINT_DIGITS]
        ids, withdrawals = secret.subkey("dicom-etl resource ids"), secret.subkey("dicom-etl withdrawal digests")
        return cls(namespace, key is None, fingerprint, ids, withdrawals)

    def in_namespace(self, namespace: str) -> ResourceIds:
        """The ids of another namespace, under the same secret key if one is configured, else under a derived one."""
        return ResourceIds.from_key(namespace, None) if self.is_guessable else replace(self, namespace=namespace)

    def resource_id(self, resource_type: str, *business_key: str) -> str:
        """The id, in 36 characters, of the resource with a business key (its parts in order)."""
        bits = bytearray(self._id_key.digest(self.namespace, resource_type, *business_key)[:16])
        bits[6] = bits[6] & 0x0F | 0x80  # version 8
        bits[8] = bits[8] & 0x3F | 0x80  # the variant of RFC 9562
        return str(uuid.UUID(bytes=bytes(bits)))

    def withdrawal_digest(self, dataset: str, subject: str) -> str:
        """The digest, in 64 hexadecimal digits, that represents a withdrawn subject in the record of withdrawals."""
        return self._withdrawal_key.digest(self.namespace, dataset, subject).hex()
