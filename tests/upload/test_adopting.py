"""Our series and instances in somebody else's study."""

from typing import Any

import pytest

from dicom_etl.upload.adopting import adopted

OURS = {"series": [{"uid": "1", "instance": [{"uid": "1.1"}, {"uid": "1.2"}]}, {"uid": "2", "instance": []}]}


@pytest.mark.parametrize(
    ("theirs", "made", "instances"),
    [
        ([{"number": 7}], [{"number": 7}, *OURS["series"]], 2),
        (
            [{"uid": "1", "instance": [{"number": 9}, {"uid": "1.1"}]}],
            [
                {"uid": "1", "instance": [{"number": 9}, {"uid": "1.1"}, {"uid": "1.2"}], "numberOfInstances": 3},
                {"uid": "2", "instance": []},
            ],
            3,
        ),
    ],
    ids=["a series", "an instance"],
)
def test_what_has_no_uid_stays_as_it_is(theirs: Any, made: Any, instances: int) -> None:
    study = {"resourceType": "ImagingStudy", "id": "theirs"}

    assert adopted(study | {"series": theirs}, OURS) == study | {
        "series": made,
        "numberOfSeries": len(made),
        "numberOfInstances": instances,
    }
