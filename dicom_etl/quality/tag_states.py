"""The state of every tag of every instance, and the counts that everything else is made from.

Instances that share tag profile, SOP class and usable values share the state of all their tags: one *profile*. What is
counted is never an instance but a profile with a number, and a series or study is the set of the profiles of its
instances. Sets are few as well, so that a tag is judged once per profile and per set, whatever the number of series.

Per instance and tag, exactly one of

- `filled`: a value that can be used; for tags that enhanced objects keep in functional groups, the resolved value;
- `unusable`: a value that fits not its VR, or a dummy for that tag (catalogue only);
- `empty`, `absent`: by the tag profile;
- `unknown`: absent where Type 1C or 2C asks for it under a condition, which is not evaluated.

A tag applies to an instance when its IOD lists it or when it is there. An instance of an unknown SOP class has no IOD:
only what is there applies. So at every level

    n_filled + n_partial + n_unusable + n_empty + n_absent + n_unknown = n_applicable

where `n_partial` is 0 for instances. Series and studies count the instances to which the tag applies: all filled, some
filled, else the best state among them in the order unusable, empty, absent, unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files

import pyarrow as pa

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.quality.occurrences import GROUPS
from dicom_etl.quality.requirements import Requirement, applicable, iod_of
from dicom_etl.quality.value_states import packed_names, watched
from dicom_etl.quality.working_database import Database

__all__ = ["REQUIREMENTS", "create_states"]

REQUIREMENTS: tuple[Requirement, ...] = ("1", "1C", "2", "2C", "3")

_PROFILES_AT_ONCE = 2_000


def create_states(
    database: Database,
    tag_profiles: pa.Table,
    groups: Mapping[str, str] = GROUPS,
    *,
    tags: pa.Table | None = None,
) -> None:
    """Tables `states`, `demands`, `weights`, `profile_sets`, `entities`, `tag_classes` and `outcomes`.

    Args:
        database: has the tables of `create_occurrences`.
        tag_profiles: rows of TAG_PROFILES; more than the occurrences name do no harm.
        groups: what weights are counted by beside `all`: name -> SQL expression over an occurrence.
        tags: columns `tag` and `creator` of the tags that are kept; None: those that mean something in the occurrences.
    """
    database.create("tag_profiles_in", tag_profiles)
    database.run(_PROFILE_TAGS)
    _create_requirements(database)
    _create_values(database)
    database.run(_STATES)
    if tags is None:
        database.run(_TRIM)
    else:
        database.create("kept_tags", tags)
        database.run("""
            DELETE FROM states
            WHERE (tag, coalesce(creator, '')) NOT IN (SELECT (tag, coalesce(creator, '')) FROM kept_tags)
        """)
    _create_weights(database, groups)
    database.run(_TAG_CLASSES)
    database.run(_OUTCOMES)


def _create_requirements(database: Database) -> None:
    """Tables `demands` (tag profile, SOP class -> demand) and `required` (demand -> tag, rank of its type)."""
    by_tag_profile: dict[int, list[str]] = {}
    for row in database.rows("SELECT DISTINCT tag_profile, sop_class FROM profiles WHERE sop_class IS NOT NULL"):
        by_tag_profile.setdefault(row["tag_profile"], []).append(row["sop_class"])
    demands = _Demands()
    for tag_profile, present in _standard_tags(database):
        for sop_class in by_tag_profile.pop(tag_profile, ()):
            demands.add(tag_profile, sop_class, present)
    for tag_profile, sop_classes in by_tag_profile.items():  # a header of nothing at all
        for sop_class in sop_classes:
            demands.add(tag_profile, sop_class, frozenset())
    database.create("demands", demands.table())
    database.create("required", demands.sets())


def _standard_tags(database: Database) -> Iterator[tuple[int, frozenset[str]]]:
    """The tags of each tag profile that the standard knows."""
    for rows in database.batches(
        "SELECT tag_profile, list(tag) AS tags FROM tag_profile_tags WHERE creator IS NULL GROUP BY tag_profile",
        _PROFILES_AT_ONCE,
    ):
        for row in rows.to_pylist():
            yield row["tag_profile"], frozenset(row["tags"])


def _create_values(database: Database) -> None:
    """Table `profile_values`: the state of the catalogue's values, by profile and tag."""
    rows = [{"tag": c.tag, "own": c.own, "word": f"values{c.word}", "shift": c.shift} for c in watched()]
    database.create("value_columns", pa.Table.from_pylist(rows))
    database.create("catalogued", pa.table({"tag": sorted({tag_text(column.tag) for column in catalogue()})}))
    parts = [
        f"""SELECT profile, tag, own, ({word} >> shift) & 3 AS value
            FROM profiles, value_columns WHERE word = '{word}'"""
        for word in packed_names()
    ]
    database.run(f"""
        CREATE TABLE profile_values AS
        SELECT profile, tag, bool_or(own) AS own, max(value) AS value
        FROM ({" UNION ALL ".join(parts)}) GROUP BY ALL
    """)


def _create_weights(database: Database, groups: Mapping[str, str]) -> None:
    """Tables `weights` (in each group of each level, how many entities have which set of profiles), `profile_sets`
    (the sets by number) and `entities` (the set of each study and series)."""
    for level in ("series", "study"):
        database.run(f"CREATE TABLE {level}_sets AS {_sets(level, _ALL)}")
    parts = []
    for name, value in {"all": _ALL, **groups}.items():
        common = f"'{name}' AS group_by, {value} AS \"group\""
        parts.append(
            f"SELECT 'instance' AS level, {common}, [profile] AS profiles, sum(n) AS n FROM occurrences GROUP BY ALL"
        )
        for level in ("series", "study"):
            sets = f"{level}_sets" if name == "all" else f"({_sets(level, value)})"
            parts.append(f"SELECT '{level}', '{name}', \"group\", profiles, count(*) FROM {sets} GROUP BY ALL")
    database.run("CREATE TABLE counted_sets AS " + " UNION ALL ".join(parts))
    database.run("""
        CREATE TABLE profile_sets AS
        SELECT row_number() OVER () AS profile_set, profiles FROM (SELECT DISTINCT profiles FROM counted_sets)
    """)
    database.run("""
        CREATE TABLE weights AS
        SELECT level, group_by, "group", profile_set, n FROM counted_sets JOIN profile_sets USING (profiles)
    """)
    database.run("""
        CREATE TABLE entities AS
        SELECT 'series' AS level, series AS entity, profile_set FROM series_sets JOIN profile_sets USING (profiles)
        UNION ALL
        SELECT 'study', study, profile_set FROM study_sets JOIN profile_sets USING (profiles)
    """)


_ALL = "'all'"


def _sets(level: str, value: str) -> str:
    """The profiles of each entity of a level within each group."""
    return f"""
        SELECT {value} AS "group", {level}, list_sort(list(DISTINCT profile)) AS profiles
        FROM occurrences WHERE {level} IS NOT NULL GROUP BY ALL
    """


class _Demands:
    """What is asked of each combination of tag profile and SOP class; equal answers are one set."""

    def __init__(self) -> None:
        self._places: list[tuple[int, str, int]] = []
        self._numbers: dict[tuple[int, str], int] = {}
        self._sets: list[tuple[Mapping[str, Requirement], Mapping[str, Requirement]]] = []

    def add(self, tag_profile: int, sop_class: str, present: frozenset[str]) -> None:
        asked = applicable(sop_class, present)
        if asked is None:
            return
        iod = iod_of(sop_class) or ""
        key = (id(asked), iod)  # the answers are kept in `_sets`, so that an id stays one answer's
        if key not in self._numbers:
            self._numbers[key] = len(self._sets)
            self._sets.append((asked, _in_functional_groups().get(iod, {})))
        self._places.append((tag_profile, sop_class, self._numbers[key]))

    def table(self) -> pa.Table:
        columns = list(zip(*self._places, strict=True)) or [(), (), ()]
        types = (pa.int64(), pa.string(), pa.int32())
        arrays = [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)]
        return pa.table(arrays, names=["tag_profile", "sop_class", "demand"])

    def sets(self) -> pa.Table:
        rank = {requirement: n for n, requirement in enumerate(REQUIREMENTS)}
        rows = [
            (number, tag, rank[requirement])
            for number, (asked, inside) in enumerate(self._sets)
            for tag, requirement in {**inside, **asked}.items()
        ]
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        types = (pa.int32(), pa.string(), pa.int8())
        arrays = [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)]
        return pa.table(arrays, names=["demand", "tag", "rank"])


@cache
def _in_functional_groups() -> Mapping[str, Mapping[str, Requirement]]:
    text = files("dicom_etl.quality.tables").joinpath("functional_groups.json").read_text(encoding="utf-8")
    table = json.loads(text)
    return {iod: dict.fromkeys(tags, table["requirement"]) for iod, tags in table["iods"].items()}


# Private elements by creator, whatever block they stand in: (0029,1008) of SIEMENS is 0029xx08. The creators' own
# elements (gggg,0010-00FF) only say which block is whose (PS3.5 7.8.1) and are no tags of their own.
_PROFILE_TAGS = """
    CREATE TABLE tag_profile_tags AS
    WITH marked AS (
        SELECT *, substr(tag, 4, 1) IN ('1', '3', '5', '7', '9', 'B', 'D', 'F') AS private,
               private AND substr(tag, 5, 2) = '00' AND substr(tag, 7, 2) >= '10' AS reservation
        FROM tag_profiles_in WHERE tag_profile IN (SELECT tag_profile FROM profiles)
    )
    SELECT tag_profile, CASE WHEN private AND nullif(creator, '') IS NOT NULL
                        THEN substr(tag, 1, 4) || 'xx' || substr(tag, 7, 2) ELSE tag END AS tag,
           CASE WHEN private THEN nullif(creator, '') END AS creator, max(status) AS status
    FROM marked WHERE NOT reservation GROUP BY ALL
"""

# State codes in order of how much is there: 0 unknown, 1 absent, 2 empty, 3 unusable, 4 filled.
_STATES = """
    CREATE TABLE states AS
    WITH known AS (
        SELECT profile, tag, creator, status, NULL::INTEGER AS value, false AS own, NULL::TINYINT AS rank
        FROM profiles JOIN tag_profile_tags USING (tag_profile)
        UNION ALL
        SELECT profile, tag, NULL, NULL, value, own, NULL FROM profile_values
        UNION ALL
        SELECT profile, tag, NULL, NULL, NULL, false, rank
        FROM profiles JOIN demands USING (tag_profile, sop_class) JOIN required USING (demand)
    ), merged AS (
        SELECT profile, tag, creator, max(status) AS status, max(value) AS value, bool_or(own) AS own,
               min(rank) AS rank
        FROM known GROUP BY profile, tag, creator
    ), judged AS (
        SELECT profile, tag, creator, rank, own,
               CASE WHEN value = 1 THEN 4
                    WHEN value = 2 OR (status = 2 AND own) THEN 3
                    WHEN status = 2 THEN 4
                    WHEN status = 1 THEN 2
                    WHEN rank IN (1, 3) THEN 0
                    ELSE 1 END AS state
        FROM merged
    )
    SELECT * FROM judged WHERE rank IS NOT NULL OR state >= 2
"""

# Type 3 tags that no instance of the dataset has say nothing, unless the catalogue names them.
_TRIM = """
    DELETE FROM states WHERE (tag, coalesce(creator, '')) IN (
        SELECT (tag, coalesce(creator, '')) FROM states WHERE tag NOT IN (SELECT tag FROM catalogued)
        GROUP BY tag, creator HAVING max(state) < 2 AND min(rank) = 4
    )
"""

# Tags whose states are the same in every profile: they are counted once for all of them. Most tags of an IOD are.
_TAG_CLASSES = """
    CREATE TABLE tag_classes AS
    SELECT tag, creator, own, dense_rank() OVER (ORDER BY states) AS tag_class
    FROM (
        SELECT tag, creator, bool_or(own) AS own,
               list_sort(list((profile * 8 + state) * 8 + coalesce(rank, 7))) AS states
        FROM states GROUP BY tag, creator
    );
    CREATE TABLE class_states AS
    SELECT tag_class, profile, any_value(rank) AS rank, any_value(state) AS state
    FROM states s JOIN tag_classes c ON c.tag = s.tag AND c.creator IS NOT DISTINCT FROM s.creator
    GROUP BY tag_class, profile
"""

_OUTCOMES = """
    CREATE TABLE outcomes AS
    SELECT profile_set, tag_class, min(rank) AS rank,
           CASE WHEN min(state) = 4 THEN 'filled'
                WHEN max(state) = 4 THEN 'partial'
                ELSE ['unknown', 'absent', 'empty', 'unusable'][max(state) + 1] END AS outcome
    FROM (SELECT profile_set, unnest(profiles) AS profile FROM profile_sets) JOIN class_states USING (profile)
    GROUP BY profile_set, tag_class
"""
