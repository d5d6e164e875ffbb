"""A Patient of ours and what the server has: whose words count."""

from typing import Any

import pytest

from dicom_etl.upload.reconciling import is_alike, plain, reconciled

BASE = {"resourceType": "Patient", "id": "p"}
HOME = {"system": "phone", "value": "1"}


@pytest.mark.parametrize(
    ("ours", "before", "theirs", "made", "contradictions"),
    [
        ({"gender": "male"}, None, {}, {"gender": "male"}, ()),
        ({}, None, {"gender": "male"}, {"gender": "male"}, ()),  # others said it
        ({}, {"gender": "male"}, {"gender": "male"}, {}, ()),  # we said it, and no longer do
        ({}, {"gender": "male"}, {"gender": "female"}, {"gender": "female"}, ()),  # changed by others since
        ({"gender": "female"}, {"gender": "male"}, {"gender": "male"}, {"gender": "female"}, ()),
        ({"gender": "female"}, None, {"gender": "male"}, {"gender": "male"}, ("gender",)),
        ({"gender": "female"}, {"gender": "other"}, {"gender": "male"}, {"gender": "male"}, ("gender",)),
        ({"birthDate": "1980-05-01"}, None, {"birthDate": "1980"}, {"birthDate": "1980-05-01"}, ()),
        ({"birthDate": "1980"}, None, {"birthDate": "1980-05-01"}, {"birthDate": "1980-05-01"}, ()),
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
    ],
)
def test_whose_words_count(ours: Any, before: Any, theirs: Any, made: Any, contradictions: Any) -> None:
    result = reconciled(BASE | ours, [] if before is None else [BASE | before], BASE | theirs)
    assert result.patient == BASE | made
    assert result.contradictions == contradictions


def test_what_the_server_writes_into_a_resource_is_not_said_by_anybody() -> None:
    theirs = BASE | {"meta": {"versionId": "3", "lastUpdated": "2024-01-01", "source": "#x"}, "text": {"div": "..."}}
    assert plain(theirs) == BASE
    assert is_alike(theirs, BASE)


def test_what_was_sent_last_and_what_may_have_arrived_since_are_both_ours() -> None:
    stored = BASE | {"gender": "male", "name": [{"family": "A"}], "birthDate": "1980-01-01"}
    tried = BASE | {"gender": "other", "name": [{"family": "B"}]}
    ours = BASE | {"gender": "female", "name": [{"family": "C"}]}
    for theirs in (stored, tried):
        assert reconciled(ours, [stored, tried], theirs).patient == ours
        assert reconciled(ours, [stored, tried], theirs).contradictions == ()


@pytest.mark.parametrize("status", ["generated", "extensions", "empty"])
def test_a_narrative_that_repeats_the_elements_is_not_kept(status: str) -> None:
    theirs = BASE | {"text": {"status": status, "div": "<div>male</div>"}}
    assert reconciled(BASE | {"gender": "female"}, (), theirs).patient == BASE | {"gender": "female"}


def test_a_narrative_that_says_more_than_the_elements_stays() -> None:
    theirs = BASE | {"text": {"status": "additional", "div": "<div>allergic to gadolinium</div>"}}
    assert reconciled(BASE | {"gender": "female"}, (), theirs).patient == theirs | {"gender": "female"}
    assert not is_alike(theirs, BASE)


def test_labels_of_both_stay() -> None:
    ours = BASE | {"meta": {"security": [{"code": "PSEUDED"}]}}
    theirs = BASE | {"meta": {"versionId": "1", "tag": [{"code": "t"}], "security": [{"code": "R"}]}}
    assert reconciled(ours, (), theirs).patient["meta"] == {
        "tag": [{"code": "t"}],
        "security": [{"code": "PSEUDED"}, {"code": "R"}],
    }
