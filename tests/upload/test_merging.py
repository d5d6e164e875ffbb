"""One Patient of what several datasets say."""

from itertools import permutations

from dicom_etl.upload.merging import Contradiction, Contribution, merged


def patient(**more: object) -> dict[str, object]:
    return {"resourceType": "Patient", "id": "p", **more}


def test_lists_are_united_and_single_values_taken_from_who_has_them():
    one = Contribution("A", patient(identifier=[{"value": "2"}], birthDate="1980-05-01"))
    other = Contribution("B", patient(identifier=[{"value": "1"}, {"value": "2"}], gender="female"))

    whole = merged([one, other])

    assert whole.patient == patient(
        identifier=[{"value": "1"}, {"value": "2"}], birthDate="1980-05-01", gender="female"
    )
    assert whole.contradictions == ()


def test_the_order_of_loading_does_not_matter():
    said = [
        Contribution("C", patient(name=[{"family": "Zeta"}], gender="unknown")),
        Contribution("A", patient(name=[{"family": "Beta"}, {"family": "Alpha"}], birthDate="1980")),
        Contribution("B", patient(birthDate="1980-05-01", gender="male")),
    ]

    results = [merged(order) for order in permutations(said)]

    assert results[0].patient == patient(
        name=[{"family": "Alpha"}, {"family": "Beta"}, {"family": "Zeta"}], birthDate="1980-05-01", gender="male"
    )
    assert all(result == results[0] for result in results)
    assert results[0].contradictions == ()


def test_where_they_contradict_the_first_by_name_counts_and_it_is_told():
    said = [Contribution("B", patient(gender="male")), Contribution("A", patient(gender="female"))]

    whole = merged(said)

    assert whole.patient["gender"] == "female"
    assert whole.contradictions == (Contradiction("gender", ("A", "B")),)


def test_what_the_server_has_stays_while_somebody_says_it():
    said = [Contribution("A", patient(birthDate="1980-01-01")), Contribution("B", patient(birthDate="1981-01-01"))]

    assert merged(said, patient(birthDate="1981-01-01")).patient["birthDate"] == "1981-01-01"
    assert merged(said, patient(birthDate="1999-01-01")).patient["birthDate"] == "1980-01-01"


def test_a_choice_element_keeps_one_form():
    said = [
        Contribution("A", patient(deceasedBoolean=True)),
        Contribution("B", patient(deceasedDateTime="2001-01-01")),
    ]

    whole = merged(said)

    assert whole.patient == patient(deceasedBoolean=True)
    assert whole.contradictions == (Contradiction("deceased", ("A", "B")),)


def test_nobody_knows_is_said_when_nobody_knows():
    assert merged([Contribution("A", patient(gender="unknown"))]).patient == patient(gender="unknown")
