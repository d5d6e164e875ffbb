"""Resource ids. Expected ids: uuid5(uuid5(NAMESPACE_URL, site), JSON of [type, *key]), made outside of the package."""

from dicom_etl.identity.ids import resource_id

SITE = "https://site.example"


def test_an_id_is_the_same_on_every_machine() -> None:
    assert resource_id(SITE, "Patient", "urn:oid:1.2", "P-1") == "2ab558d5-3592-540a-b64e-e6a1c90d4057"


def test_a_key_of_other_scripts_has_an_id() -> None:
    assert resource_id(SITE, "Patient", "a", "ü") == "ae788e68-3014-589c-b7d7-ab95b5539326"


def test_sites_do_not_share_ids() -> None:
    assert resource_id(SITE, "Endpoint", "breast") != resource_id("https://other.example", "Endpoint", "breast")


def test_types_do_not_share_ids() -> None:
    assert resource_id(SITE, "Endpoint", "breast") != resource_id(SITE, "Patient", "breast")


def test_the_parts_of_a_key_do_not_run_into_each_other() -> None:
    keys = [("a", "b|c"), ("a|b", "c"), ("a,b", "c"), ("a", 'b","c'), ("a", "b", "c")]
    assert len({resource_id(SITE, "Patient", *key) for key in keys}) == 5


def test_the_order_of_the_parts_matters() -> None:
    assert resource_id(SITE, "Patient", "a", "b") != resource_id(SITE, "Patient", "b", "a")
