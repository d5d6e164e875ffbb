"""What an update would take away from a study that the server has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Loss:
    """How many series and instances of the server's study ours lacks."""

    series: int
    of_series: int
    instances: int
    of_instances: int

    def __bool__(self) -> bool:
        return bool(self.series or self.instances)

    def __str__(self) -> str:
        return (
            f"the update would take {self.series} of {self.of_series} series and "
            f"{self.instances} of {self.of_instances} instances away"
        )


def loss(before: Mapping[str, Any], after: Mapping[str, Any]) -> Loss:
    """What `after` lacks of `before`, by UID. An instance that went to another series of the study is not lost."""
    series_before, instances_before = _uids(before)
    series_after, instances_after = _uids(after)
    return Loss(
        len(series_before - series_after),
        len(series_before),
        len(instances_before - instances_after),
        len(instances_before),
    )


def _uids(study: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    series = study.get("series", [])
    return (
        {one.get("uid", "") for one in series},
        {instance.get("uid", "") for one in series for instance in one.get("instance", [])},
    )
