"""Resource ids: UUIDv8 that only the holder of the key can compute.

Expected values were computed with OpenSSL alone. The subkey of a key K is `printf %s LABEL | openssl dgst -sha256 -mac
HMAC -macopt hexkey:K`, with the label "dicom-etl resource ids"; the digest is the same of the parts, each after its
length in four bytes, under the subkey. Of its first 16 bytes the 13th hexadecimal digit becomes 8 (version), and of the
17th the upper two bits become 10 (variant).
"""

import copy
import hmac
import pickle
import uuid
from dataclasses import FrozenInstanceError, asdict, astuple
from itertools import product

import pytest

from dicom_etl.identity.ids import ResourceIds

NAMESPACE = "https://site.example"
KEY = bytes(range(32))
TEXT_KEY = b"correct horse battery staple, 32 bytes and more"
IDS = ResourceIds.from_key(NAMESPACE, KEY)
DERIVED = ResourceIds.from_key(NAMESPACE, None)


class TestKnownAnswers:
    @pytest.mark.parametrize(
        ("ids", "parts", "expected"),
        [
            # HMAC d1a80436cdded24dd5d7673b335e0495...
            (IDS, ("Patient", "urn:oid:1.2", "P-1"), "d1a80436-cdde-824d-95d7-673b335e0495"),
            # HMAC 374b34b9fb4032b5865d427f2b1d30b4...
            (IDS, ("Patient", "a", "ü"), "374b34b9-fb40-82b5-865d-427f2b1d30b4"),
            # HMAC a7fe16600e044634cb38546f19d57304...
            (IDS, ("Endpoint", "breast"), "a7fe1660-0e04-8634-8b38-546f19d57304"),
            # HMAC f38b65bf21890708048947ebe83f795f...
            (
                ResourceIds.from_key(NAMESPACE, TEXT_KEY),
                ("Patient", "urn:oid:1.2", "P-1"),
                "f38b65bf-2189-8708-8489-47ebe83f795f",
            ),
            # HMAC e423e95224955bc2fa93aa04a44fd3ea..., where K is the HMAC of the namespace under the key "dicom-etl"
            (DERIVED, ("Patient", "urn:oid:1.2", "P-1"), "e423e952-2495-8bc2-ba93-aa04a44fd3ea"),
            # HMAC 6f83a513184eb4de3735e8504d1df428...
            (DERIVED, ("Endpoint", "breast"), "6f83a513-184e-84de-b735-e8504d1df428"),
        ],
    )
    def test_an_id_is_the_same_on_every_machine(self, ids: ResourceIds, parts: tuple[str, ...], expected: str) -> None:
        assert ids.resource_id(*parts) == expected

    def test_digest_of_a_withdrawn_subject(self) -> None:
        """The label of the subkey is "dicom-etl withdrawal digests"."""
        assert IDS.withdrawal_digest("breast", "sub-1") == (
            "53299b8a548c3d0f2daf64cddea6ab427fdc1693c9f001c71db3a08dc50eebbb"
        )
        assert DERIVED.withdrawal_digest("breast", "sub-1") == (
            "79f6b4a3f67863d9670974c2e90197ae6c288420d30acc2984f3d5804a99508f"
        )

    def test_fingerprint_of_a_key(self) -> None:
        """The label of the subkey is "dicom-etl key fingerprint"; the digest is that of nothing."""
        assert IDS.key_fingerprint == "cc2fb04f02db434b"
        assert ResourceIds.from_key(NAMESPACE, TEXT_KEY).key_fingerprint == "732c716925d4e303"
        assert DERIVED.key_fingerprint == "64686ed6f146065b"


class TestDistinctness:
    def test_ids_are_uuids_of_version_8(self) -> None:
        ids = [IDS.resource_id("Patient", str(number)) for number in range(200)]
        assert {len(text) for text in ids} == {36}
        assert {uuid.UUID(text).version for text in ids} == {8}
        assert {uuid.UUID(text).variant for text in ids} == {uuid.RFC_4122}
        assert {text[19] for text in ids} == set("89ab")
        assert [str(uuid.UUID(text)) for text in ids] == ids

    def test_unusual_keys_have_different_ids(self) -> None:
        parts = ("", " ", "a", "A", "\0", "|", ",")
        lone = ("ü", "u\N{COMBINING DIAERESIS}", "\udcff", "\udcc3\udca9", "é", '"', "\x00\x00\x00\x01a", "aa")
        keys = [*product(parts, repeat=2), *((part,) for part in lone)]
        assert len(keys) == 57
        assert len({IDS.resource_id("Patient", *key) for key in keys}) == 57

    def test_the_boundaries_of_key_parts_matter(self) -> None:
        keys = [
            ("a", "b|c"),
            ("a|b", "c"),
            ("a,b", "c"),
            ("a", 'b","c'),
            ("a", "b", "c"),
            ("ab", "c"),
            ("a", "bc"),
            ("abc",),
        ]
        keys += [("abc", ""), ("", "abc"), ("a\x00\x00\x00\x01b", "c"), ("a\x00\x00\x00\x01bc",)]
        assert len({IDS.resource_id("Patient", *key) for key in keys}) == len(keys)

    def test_the_order_of_key_parts_matters(self) -> None:
        assert IDS.resource_id("Patient", "a", "b") != IDS.resource_id("Patient", "b", "a")

    def test_resource_types_do_not_share_ids(self) -> None:
        assert IDS.resource_id("Endpoint", "breast") != IDS.resource_id("Patient", "breast")

    @pytest.mark.parametrize("key", [KEY, None])
    def test_namespaces_do_not_share_ids(self, key: bytes | None) -> None:
        ids, other = ResourceIds.from_key(NAMESPACE, key), ResourceIds.from_key("https://other.example", key)
        assert ids.resource_id("Endpoint", "breast") != other.resource_id("Endpoint", "breast")
        assert ids.withdrawal_digest("breast", "sub-1") != other.withdrawal_digest("breast", "sub-1")
        assert ids.in_namespace("https://other.example") == other

    def test_secret_keys_share_no_ids_digests_or_fingerprints(self) -> None:
        several = [ResourceIds.from_key(NAMESPACE, key) for key in (KEY, KEY[::-1], KEY + b"\0" * 64, TEXT_KEY, None)]
        assert len({ids.resource_id("Patient", "a") for ids in several}) == 5
        assert len({ids.withdrawal_digest("ds", "a") for ids in several}) == 5
        assert len({ids.key_fingerprint for ids in several}) == 5

    def test_ids_without_a_key_are_guessable(self) -> None:
        assert [DERIVED.is_guessable, IDS.is_guessable] == [True, False]


class TestObject:
    def test_ids_can_be_sent_to_workers(self) -> None:
        for ids in (IDS, DERIVED):
            other = pickle.loads(pickle.dumps(ids))
            assert other == ids
            assert hash(other) == hash(ids)
            assert other.resource_id("Patient", "a") == ids.resource_id("Patient", "a")
            assert copy.deepcopy(ids) == ids

    def test_no_text_form_contains_the_secret_key(self) -> None:
        ids = ResourceIds.from_key(NAMESPACE, TEXT_KEY)
        shown = f"{ids} {ids!r} {asdict(ids)} {astuple(ids)} {vars(ids)}"
        assert "key_fingerprint='732c716925d4e303'" in shown
        labels = (b"dicom-etl resource ids", b"dicom-etl withdrawal digests")
        secrets = [TEXT_KEY, *(hmac.digest(TEXT_KEY, label, "sha256") for label in labels)]
        assert [secret for secret in secrets if repr(secret)[2:-1] in shown or secret.hex() in shown] == []

    def test_ids_cannot_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            IDS.namespace = "https://other.example"  # type: ignore[misc]
