"""One Patient merged from several sources and the server."""

from copy import deepcopy
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_etl.upload.items import encode_canonical, is_same_content
from dicom_etl.upload.patients import Conflict, Contribution, merge_patient
from tests.upload.test_items import ODD, odd_resources

BASE = {"resourceType": "Patient", "id": "p"}
HOME = {"system": "phone", "value": "1"}


def patient(**elements: Any) -> dict[str, Any]:
    return BASE | elements


def merge_contributions(*contributions: Contribution, stored: dict[str, Any] | None = None) -> Any:
    return merge_patient([stored] if stored else [], contributions, None)


def merge_with_server(
    produced: dict[str, Any], base: list[dict[str, Any]], server: dict[str, Any] | None, replaced: Any = None
) -> Any:
    return merge_patient(base, [Contribution("", produced)], server, replaced)


# -- several contributors ---------------------------------------------------------------------------------------------


def test_lists_are_united_and_single_values_are_added() -> None:
    merged = merge_contributions(
        Contribution("A", patient(identifier=[{"value": "2"}], birthDate="1980-05-01")),
        Contribution("B", patient(identifier=[{"value": "1"}, {"value": "2"}], gender="female")),
    )
    assert merged.patient == patient(
        identifier=[{"value": "1"}, {"value": "2"}], birthDate="1980-05-01", gender="female"
    )
    assert merged.contribution == merged.patient
    assert merged.conflicts == ()


def test_the_order_of_sources_does_not_matter() -> None:
    contributions = [
        Contribution("C", patient(name=[{"family": "Zeta"}], gender="unknown")),
        Contribution("A", patient(name=[{"family": "Beta"}, {"family": "Alpha"}], birthDate="1980")),
        Contribution("B", patient(birthDate="1980-05-01", gender="male")),
        Contribution("A", patient(birthDate="1980-05")),
    ]
    results = [merge_contributions(*order) for order in permutations(contributions)]
    assert results[0].patient == patient(
        name=[{"family": "Alpha"}, {"family": "Beta"}, {"family": "Zeta"}], birthDate="1980-05-01", gender="male"
    )
    assert all(result == results[0] for result in results)
    assert results[0].conflicts == ()


def test_of_different_values_the_first_source_wins_with_a_conflict() -> None:
    merged = merge_contributions(Contribution("B", patient(gender="male")), Contribution("A", patient(gender="female")))
    assert merged.patient["gender"] == "female"
    assert merged.conflicts == (Conflict("gender", ("A", "B")),)


@pytest.mark.parametrize(("stored", "chosen"), [("1981-01-01", "1981-01-01"), ("1999-01-01", "1980-01-01")])
def test_the_value_sent_last_is_kept_while_a_source_has_it(stored: str, chosen: str) -> None:
    contributions = [
        Contribution("A", patient(birthDate="1980-01-01")),
        Contribution("B", patient(birthDate="1981-01-01")),
    ]
    merged = merge_contributions(*contributions, stored=patient(birthDate=stored))
    assert merged.patient["birthDate"] == chosen
    assert merged.conflicts == (Conflict("birthDate", ("A", "B")),)


def test_a_choice_element_keeps_one_data_type() -> None:
    merged = merge_contributions(
        Contribution("A", patient(deceasedBoolean=True)), Contribution("B", patient(deceasedDateTime="2001-01-01"))
    )
    assert merged.patient == patient(deceasedBoolean=True)
    assert merged.conflicts == (Conflict("deceased", ("A", "B")),)


def test_unknown_is_kept_if_no_source_has_a_value() -> None:
    assert merge_contributions(Contribution("A", patient(gender="unknown"))).patient == patient(gender="unknown")


# -- the server -------------------------------------------------------------------------------------------------------

CASES = [
    # contribution, former contribution (None: not known), the server's Patient, merged, conflicts
    ({"gender": "male"}, None, {}, {"gender": "male"}, ()),
    ({}, None, {"gender": "male"}, {"gender": "male"}, ()),  # another client's
    ({}, {"gender": "male"}, {"gender": "male"}, {}, ()),  # the lake sent it, and no longer has it
    ({}, {"gender": "male"}, {"gender": "female"}, {"gender": "female"}, ()),  # another client changed it
    ({"gender": "female"}, {"gender": "male"}, {"gender": "male"}, {"gender": "female"}, ()),
    ({"gender": "female"}, None, {"gender": "male"}, {"gender": "male"}, ("gender",)),
    ({"gender": "female"}, {"gender": "other"}, {"gender": "male"}, {"gender": "male"}, ("gender",)),
    ({"gender": "female"}, {"gender": "female"}, {}, {"gender": "female"}, ()),  # another client removed it
    ({"birthDate": "1980-05-01"}, None, {"birthDate": "1980"}, {"birthDate": "1980-05-01"}, ()),
    ({"birthDate": "1980"}, None, {"birthDate": "1980-05-01"}, {"birthDate": "1980-05-01"}, ()),
    ({"birthDate": "1980-05"}, None, {"birthDate": "1980-06"}, {"birthDate": "1980-06"}, ("birthDate",)),
    ({"active": True}, None, {"active": False}, {"active": False}, ("active",)),
    ({}, {"active": False}, {"active": False}, {}, ()),
    (
        {"name": [{"family": "A"}]},
        None,
        {"name": [{"family": "B"}]},
        {"name": [{"family": "A"}, {"family": "B"}]},
        (),
    ),
    (
        {"name": [{"family": "A"}]},
        {"name": [{"family": "C"}]},
        {"name": [{"family": "C"}]},
        {"name": [{"family": "A"}]},
        (),
    ),
    ({}, {"name": [{"family": "A"}]}, {"telecom": [HOME], "name": [{"family": "A"}]}, {"telecom": [HOME]}, ()),
    # in the order of the server, where it has all of them
    (
        {"name": [{"family": "A"}]},
        None,
        {"name": [{"family": "B"}, {"family": "A"}]},
        {"name": [{"family": "B"}, {"family": "A"}]},
        (),
    ),
    # one of two forms
    ({"deceasedBoolean": True}, None, {"deceasedDateTime": "2001"}, {"deceasedDateTime": "2001"}, ("deceasedBoolean",)),
    (
        {"deceasedBoolean": True},
        {"deceasedDateTime": "2001"},
        {"deceasedDateTime": "2001"},
        {"deceasedBoolean": True},
        (),
    ),
    ({"multipleBirthInteger": 2}, None, {"multipleBirthInteger": 2}, {"multipleBirthInteger": 2}, ()),
]


@pytest.mark.parametrize(("produced", "before", "server", "expected", "conflicts"), CASES)
def test_the_patient_that_is_sent(produced: Any, before: Any, server: Any, expected: Any, conflicts: Any) -> None:
    merged = merge_with_server(BASE | produced, [] if before is None else [BASE | before], BASE | server)
    assert merged.patient == BASE | expected
    assert merged.contribution == BASE | produced
    assert merged.conflicts == tuple(Conflict(element) for element in conflicts)


def test_stored_and_possibly_arrived_values_are_the_lakes() -> None:
    stored = patient(gender="male", name=[{"family": "A"}], birthDate="1980-01-01")
    attempted = patient(gender="other", name=[{"family": "B"}])
    produced = patient(gender="female", name=[{"family": "C"}])
    for server in (stored, attempted):
        merged = merge_with_server(produced, [stored, attempted], server)
        assert (merged.patient, merged.conflicts) == (produced, ())


@pytest.mark.parametrize("status", ["generated", "extensions", "empty"])
def test_a_narrative_that_repeats_the_elements_is_not_kept(status: str) -> None:
    server = patient(text={"status": status, "div": "<div>male</div>"})
    assert merge_with_server(patient(gender="female"), [], server).patient == patient(gender="female")


def test_a_narrative_with_more_than_the_elements_stays() -> None:
    server = patient(text={"status": "additional", "div": "<div>allergic to gadolinium</div>"})
    assert merge_with_server(patient(gender="female"), [], server).patient == server | {"gender": "female"}


def test_labels_of_lake_and_server_stay() -> None:
    produced = patient(meta={"security": [{"code": "PSEUDED"}]})
    server = patient(meta={"versionId": "1", "tag": [{"code": "t"}], "security": [{"code": "R"}]})
    assert merge_with_server(produced, [], server).patient["meta"] == {
        "tag": [{"code": "t"}],
        "security": [{"code": "PSEUDED"}, {"code": "R"}],
    }


def test_a_replaced_version_is_merged() -> None:
    replaced = patient(meta={"versionId": "1"}, name=[{"family": "B"}], telecom=[HOME], gender="male")
    server = patient(meta={"versionId": "2"}, name=[{"family": "A"}], gender="female")
    merged = merge_with_server(patient(name=[{"family": "A"}], gender="female"), [], server, replaced)
    assert merged.patient == patient(name=[{"family": "A"}, {"family": "B"}], telecom=[HOME], gender="female")
    assert merged.conflicts == (Conflict("gender"),)


# -- odd shapes -------------------------------------------------------------------------------------------------------

PRODUCED = patient(
    identifier=[{"system": "s", "value": "1"}],
    name=[{"family": "A"}],
    birthDate="1980-05-01",
    gender="female",
    meta={"tag": [{"code": "t"}], "security": [{"code": "R"}]},
)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("element", ["identifier", "name", "birthDate", "gender", "meta", "text", "link", "extra"])
def test_malformed_elements_of_the_server_do_not_raise(element: str, odd: Any) -> None:
    for before in ([], [PRODUCED], [{}]):
        merged = merge_with_server(PRODUCED, before, PRODUCED | {element: odd})
        encode_canonical(merged.patient)
        if element in ("identifier", "name"):
            assert all(item in merged.patient[element] for item in PRODUCED[element])


@pytest.mark.parametrize("odd", ODD)
def test_malformed_labels_do_not_raise(odd: Any) -> None:
    merged = merge_with_server(PRODUCED, [], PRODUCED | {"meta": {"tag": odd, "versionId": odd}})
    assert {"code": "t"} in merged.patient["meta"]["tag"]
    assert merged.patient["meta"]["security"] == [{"code": "R"}]


@pytest.mark.parametrize("birth", [1980, 1980.5, True, ["1980"], {}])
def test_a_birth_date_of_another_type_does_not_raise(birth: Any) -> None:
    merged = merge_with_server(patient(birthDate="1980-05-01"), [], patient(birthDate=birth))
    assert "birthDate" in merged.patient


@given(server=odd_resources, replaced=st.none() | odd_resources)
def test_no_patient_of_a_server_raises(server: dict[str, Any], replaced: dict[str, Any] | None) -> None:
    merged = merge_with_server(PRODUCED, [PRODUCED], server, replaced)
    assert merged.contribution["name"] == PRODUCED["name"]


# -- properties -------------------------------------------------------------------------------------------------------

families = st.lists(st.sampled_from("ABCDE"), unique=True, max_size=3).map(
    lambda letters: [{"family": letter, "use": "usual"} for letter in letters]
)
patients = st.fixed_dictionaries(
    {},
    optional={
        "name": families,
        "identifier": families,
        "gender": st.sampled_from(["male", "female", "unknown"]),
        "birthDate": st.sampled_from(["1980", "1980-05", "1980-05-01", "1981", "1980-06"]),
        "active": st.booleans(),
        "maritalStatus": st.sampled_from([{"text": "a"}, {"text": "b"}]),
    },
).map(lambda elements: BASE | {name: value for name, value in elements.items() if value != []})
several = st.lists(st.builds(Contribution, st.sampled_from("ABC"), patients), min_size=1, max_size=4)


@given(contributions=several, base=st.lists(patients, max_size=2), server=st.none() | patients, data=st.data())
def test_any_order_of_sources_gives_the_same_patient(contributions: Any, base: Any, server: Any, data: Any) -> None:
    shuffled = data.draw(st.permutations(contributions))
    one, other = merge_patient(base, contributions, server), merge_patient(base, shuffled, server)
    assert encode_canonical(one.patient) == encode_canonical(other.patient)
    assert one.conflicts == other.conflicts


@given(contributions=several, base=st.lists(patients, max_size=2), server=st.none() | patients)
def test_merging_again_changes_nothing(contributions: Any, base: Any, server: Any) -> None:
    first = merge_patient(base, contributions, server)
    again = merge_patient([first.contribution], contributions, first.patient)
    assert encode_canonical(again.contribution) == encode_canonical(first.contribution)
    assert encode_canonical(again.patient) == encode_canonical(first.patient)
    assert is_same_content(first.patient, again.patient)


@given(contributions=several, base=st.lists(patients, max_size=2), server=patients)
def test_values_that_another_client_added_are_never_lost(contributions: Any, base: Any, server: Any) -> None:
    merged = merge_patient(base, contributions, server).patient
    for name, value in server.items():
        if isinstance(value, list):
            was_ours = [item for one in base for item in one.get(name, [])]
            assert all(item in merged.get(name, []) for item in value if item not in was_ours)
        elif all(one.get(name) != value for one in base):
            kept = str(merged[name])
            assert kept.startswith(str(value)) if name == "birthDate" else merged[name] == value


@given(contributions=several, base=st.lists(patients, max_size=2), server=patients)
def test_values_that_the_lake_no_longer_has_are_removed(contributions: Any, base: Any, server: Any) -> None:
    merged = merge_patient(base, contributions, server).patient
    for name in ("name", "identifier"):
        still = [item for _, one in contributions for item in one.get(name, [])]
        withdrawn = [item for one in base for item in one.get(name, []) if item not in still]
        assert not [item for item in merged.get(name, []) if item in withdrawn]
    for name in ("gender", "active", "maritalStatus"):
        if all(name not in one for _, one in contributions) and any(one.get(name) == server.get(name) for one in base):
            assert name not in merged


@given(contributions=several, base=st.lists(patients, max_size=2), server=st.none() | patients)
def test_values_of_the_lake_are_present(contributions: Any, base: Any, server: Any) -> None:
    merged = merge_patient(base, contributions, server).patient
    for _, one in contributions:
        for name in ("name", "identifier"):
            assert all(item in merged[name] for item in one.get(name, []))


@given(contributions=several, base=st.lists(patients, max_size=2), server=st.none() | patients)
def test_the_arguments_are_not_modified(contributions: Any, base: Any, server: Any) -> None:
    before = deepcopy((contributions, base, server))
    merge_patient(base, contributions, server)
    assert (contributions, base, server) == before
