"""What an update would take away."""

from dicom_etl.upload.shrinking import Loss, loss


def study(**series: list[str]) -> dict[str, object]:
    return {"series": [{"uid": uid, "instance": [{"uid": i} for i in instances]} for uid, instances in series.items()]}


def test_more_of_everything_takes_nothing_away():
    assert not loss(study(s1=["a"]), study(s1=["a", "b"], s2=["c"]))


def test_lost_series_and_instances_are_counted():
    lost = loss(study(s1=["a", "b"], s2=["c"]), study(s1=["a"]))

    assert lost == Loss(1, 2, 2, 3)
    assert str(lost) == "the update would take 1 of 2 series and 2 of 3 instances away"


def test_an_exchanged_instance_is_a_lost_one():
    assert loss(study(s1=["a", "b"]), study(s1=["a", "c"])) == Loss(0, 1, 1, 2)
