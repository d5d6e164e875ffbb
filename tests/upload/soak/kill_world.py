"""The contents of two lakes of one namespace that have the same studies, as they change.

Lake A uploads a first state undisturbed; then it has new and changed studies. Lake B has most of the same studies, some
with other content. All contents that a lake ever had are kept, since the history of a server may contain no others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.upload_lakes import DatasetFactory, Resource, Study

DATASET = "X"
LARGE = 24  # instances: the study is sent by a request of its own
SINGLE_REQUEST_BYTES = 3000  # a study of one to six instances has less, a large one more


@dataclass(frozen=True)
class DescribedStudy(Study):
    """A study with a description."""

    description: str = ""


@dataclass(frozen=True)
class DescribedFactory(DatasetFactory):
    """A factory whose studies have descriptions."""

    def imaging_study(self, dataset: str, study: Study) -> Resource:
        """The ImagingStudy resource."""
        described = {"description": study.description} if isinstance(study, DescribedStudy) else {}
        return super().imaging_study(dataset, study) | described


@dataclass
class LakeContent:
    """The content of one lake: its studies by number, and all contents that it ever had.

    `shrunk` are the numbers of studies that lost an instance; `stated` has its values of each person.
    """

    name: str
    chance: random.Random  # its own: both lakes change at the same time
    studies: dict[str, DescribedStudy] = field(default_factory=dict)
    stated: dict[tuple[str, str], Resource] = field(default_factory=dict)  # by rule and person
    contents: dict[str, list[Resource]] = field(default_factory=dict)  # by ImagingStudy id
    statements: dict[tuple[str, str], list[Resource]] = field(default_factory=dict)
    shrunk: set[str] = field(default_factory=set)

    def built_studies(self) -> list[DescribedStudy]:
        """The studies with the values of this lake for their persons."""
        return [replace(one, patient=self.stated[one.rule, one.person]) for one in self.studies.values()]


@dataclass
class KillWorld:
    """The studies of a seed, in both lakes."""

    chance: random.Random
    factory: DescribedFactory
    a: LakeContent
    b: LakeContent

    @classmethod
    def of(cls, seed: int, name: str, changed: int, new: int) -> KillWorld:
        """The first state of lake A: `changed` studies; `add_changes` adds the `new` ones."""
        world = cls(random.Random(seed), DescribedFactory(name), _content("A", seed), _content("B", seed))
        world._units = _make_units(world.chance, changed + new)
        world._first, world._all = changed, changed + new
        for number in range(changed):
            world._add(world.a, world._new_study(number))
        for (rule, person), stated in world.a.stated.items():
            world.a.stated[rule, person] = stated | {"telecom": [{"system": "phone", "value": person}]}
        world._keep(world.a)
        return world

    _units: list[str] = field(default_factory=list)
    _first: int = 0
    _all: int = 0

    def add_changes(self) -> None:
        """Lake A changes what it uploaded and gets new studies; lake B begins."""
        chance, before = self.chance, dict(self.a.studies)
        for number, study in before.items():
            kind = chance.choices(("instance", "series", "description", "shrink"), (4, 2, 2, 1))[0]
            self.a.studies[number] = _change(study, kind, "A1")
            self.a.shrunk |= {number} if kind == "shrink" else set()
        for (rule, person), stated in self.a.stated.items():
            more = {key: value for key, value in stated.items() if key != "telecom"}
            self.a.stated[rule, person] = more | {"birthDate": "1980-05-01"}
        for number in range(self._first, self._all):
            self._add(self.a, self._new_study(number))
        self._keep(self.a)
        for number in range(self._all):
            self._add_to_b(str(number), before.get(str(number)))
        self._keep(self.b)

    def _add_to_b(self, number: str, before: DescribedStudy | None) -> None:
        study_of_a = self.a.studies[number]
        kinds = ("absent", "same", "more", "description", "disjoint", "before", "only here")
        kind = self.chance.choices(kinds, (5, 2, 4, 2, 2, 2 if before else 0, 1))[0]
        if kind == "only here":
            number = f"B{number}"
            self._add(self.b, replace(self._new_study(int(number[1:])), number=number))
        elif kind == "same":
            self._add(self.b, study_of_a)
        elif kind == "before" and before is not None:
            self._add(self.b, before)
        elif kind in ("more", "description"):
            self._add(self.b, _change(study_of_a, "instance" if kind == "more" else kind, "B0"))
        elif kind == "disjoint":
            self._add(self.b, replace(study_of_a, series={"9": self.chance.randint(1, 2)}))

    def change_again(self, lake: LakeContent) -> None:
        """Change one in eight studies, and the values of one in eight persons."""
        chance = lake.chance
        for number, study in lake.studies.items():
            if number not in lake.shrunk and chance.random() < 1 / 8:
                kind = chance.choice(("instance", "description"))
                round_ = len(lake.contents[self.factory.study_id(DATASET, number)])
                lake.studies[number] = _change(study, kind, f"{lake.name}{round_ + 1}")
        for key, stated in lake.stated.items():
            if chance.random() < 1 / 8:
                families = [*stated.get("name", []), {"family": f"{lake.name}{len(stated.get('name', []))}"}]
                lake.stated[key] = stated | {"name": families}
        self._keep(lake)

    def change_descriptions(self, lake: LakeContent, numbers: Iterable[str]) -> None:
        """Some studies of a lake get another description."""
        for number in numbers:
            lake.studies[number] = _change(lake.studies[number], "description", f"{lake.name} last")
        self._keep(lake)

    def _new_study(self, number: int) -> DescribedStudy:
        chance = self.chance
        is_large = chance.random() < 0.15
        series = (
            {"1": LARGE} if is_large else {str(one): chance.randint(1, 2) for one in range(1, chance.randint(2, 3))}
        )
        return DescribedStudy(
            str(number),
            f"P{chance.randrange(max(2, self._all // 4))}",
            self._units[number],
            chance.choice(("authority", "patient-id")),
            series,
            description="first",
        )

    def _add(self, lake: LakeContent, study: DescribedStudy) -> None:
        lake.studies[study.number] = study
        if (study.rule, study.person) not in lake.stated:
            lake.stated[study.rule, study.person] = _state(self.chance, lake.name)

    def _keep(self, lake: LakeContent) -> None:
        """Note the contents that the lake has now."""
        for study in lake.studies.values():
            contents = lake.contents.setdefault(self.factory.study_id(DATASET, study.number), [])
            resource = self.factory.imaging_study(DATASET, study)
            if resource not in contents[-1:]:
                contents.append(resource)
        for key, stated in lake.stated.items():
            statements = lake.statements.setdefault(key, [])
            if stated not in statements[-1:]:
                statements.append(dict(stated))

    @property
    def lakes(self) -> tuple[LakeContent, LakeContent]:
        """Both."""
        return self.a, self.b

    def study_ids(self) -> dict[str, str]:
        """The number of each study of any lake, by its id."""
        numbers = {number for lake in self.lakes for number in lake.studies}
        return {self.factory.study_id(DATASET, number): number for number in sorted(numbers)}

    def persons(self) -> dict[str, tuple[str, str]]:
        """Rule and person of each Patient of any lake, by its id."""
        keys = {key for lake in self.lakes for key in lake.stated}
        return {self.patient_id(key): key for key in sorted(keys)}

    def patient_id(self, key: tuple[str, str]) -> str:
        """The id of the Patient of a rule and a person."""
        return self.factory.patient_id(DATASET, Study("", key[1], rule=key[0]))


def _content(name: str, seed: int) -> LakeContent:
    return LakeContent(name, random.Random(f"{name} {seed}"))


def _make_units(chance: random.Random, studies: int) -> list[str]:
    """The unit of each study: of one to five studies."""
    units: list[str] = []
    while len(units) < studies:
        units += [f"sub-{len(units)}"] * chance.randint(1, 5)
    chance.shuffle(units)
    return units


def _state(chance: random.Random, lake: str) -> Resource:
    """Make the values of a person in a lake: dates of different precision, different names, and perhaps a conflict."""
    if lake == "A":
        return {"birthDate": "1980", "gender": "female", "name": [{"family": "Roe"}]}
    gender = {"gender": "male"} if chance.random() < 1 / 6 else {}
    return {"birthDate": "1980-05", "maritalStatus": {"text": "unknown"}, "name": [{"family": "Doe"}]} | gender


def _change(study: DescribedStudy, kind: str, by: str) -> DescribedStudy:
    series = dict(study.series)
    first = next(iter(series))
    if kind == "instance":
        return replace(study, series=series | {first: series[first] + 1})
    if kind == "series":
        return replace(study, series=series | {"5": 1})
    if kind == "shrink":
        others = series | {first: series[first] - 1}
        return replace(study, series=others if series[first] > 1 else {"6": 1})
    return replace(study, description=f"changed by {by}")


def uids(study: Mapping[str, Any]) -> set[str]:
    """The UIDs of the series and instances of an ImagingStudy."""
    found = {str(one["uid"]) for one in study.get("series", [])}
    return found | {str(two["uid"]) for one in study.get("series", []) for two in one.get("instance", [])}


def text(resource: Mapping[str, Any]) -> str:
    """A resource as comparable text."""
    return json.dumps(resource, sort_keys=True)
