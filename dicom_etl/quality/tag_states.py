"""The state of every tag of every instance, series and study: the basis of all counts of tags.

Instances that share tag profile, SOP class and usable values share the state of all their tags: they have the same
*state profile*. What is counted is never an instance but a state profile with a number, and a series or study is the
set of the state profiles of its instances. There are few sets as well, so that a tag is evaluated once per state
profile and per set, however many series there are.

Per instance and tag, exactly one of

- `filled`: a usable value; of tags that enhanced objects keep in functional groups, the resolved value;
- `unusable`: a value that does not fit its VR, or a placeholder for that tag (only for tags of the catalogue);
- `empty`, `absent`: according to the tag profile;
- `unknown`: absent, and required only under a condition (Type 1C, 2C), which is not evaluated.

A tag applies to an instance if its IOD contains the tag or if the tag is present. An instance of an unknown SOP class
has no IOD: only what is present applies. So at every level

    n_filled + n_partial + n_unusable + n_empty + n_absent + n_unknown = n_applicable

where `n_partial` is 0 for instances. The state of a tag in a series or study is that of the instances to which it
applies: `filled` in all of them, `partial` (filled in some), or the best state among them in the order unusable, empty,
absent, unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.quality.occurrences import GROUPS
from dicom_etl.quality.requirements import (
    TYPES,
    AttributeType,
    find_attributes,
    find_functional_group_attributes,
    find_iod,
    rank_type,
)
from dicom_etl.quality.value_states import PLACEHOLDER, USABLE, packed_columns, value_columns
from dicom_etl.quality.working_database import Database

__all__ = ["ABSENT", "EMPTY", "FILLED", "UNKNOWN", "UNUSABLE", "create_states"]

UNKNOWN, ABSENT, EMPTY, UNUSABLE, FILLED = range(5)  # in the column `state`, the worst first

_PROFILES_AT_ONCE = 2_000


def create_states(
    database: Database,
    tag_profiles: pa.Table,
    groups: Mapping[str, str] = GROUPS,
    *,
    tags: pa.Table | None = None,
) -> None:
    """Create the tables of states: `states`, `attribute_sets`, `weights`, `entities`, `tag_classes` and `set_states`.

    `states` has the state of each tag (`tag`, `creator` of a private one) in each state profile, and the `rank` of its
    type; `set_states` the state by name of each class of tags in each set of state profiles.

    Args:
        database: has the tables of `create_occurrences`.
        tag_profiles: rows of TAG_PROFILES; those that the occurrences do not use are ignored.
        groups: what weights are grouped by besides `all`: name -> SQL expression over an occurrence.
        tags: columns `tag` and `creator` of the tags to keep; None: all but optional ones that no instance has.
    """
    database.create("tag_profiles_in", tag_profiles)
    database.run(_PROFILE_TAGS)
    _create_attribute_sets(database)
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
    database.run(_SET_STATES)


def _create_attribute_sets(database: Database) -> None:
    """Tables `attribute_sets` (by tag profile and SOP class) and `attributes` (of each set: tag, rank of its type)."""
    sop_classes: dict[int, list[str]] = {}
    for row in database.fetch_rows(
        "SELECT DISTINCT tag_profile, sop_class FROM state_profiles WHERE sop_class IS NOT NULL"
    ):
        sop_classes.setdefault(row["tag_profile"], []).append(row["sop_class"])
    sets = _AttributeSets()
    for tag_profile, present in _standard_tags(database):
        for sop_class in sop_classes.pop(tag_profile, ()):
            sets.add(tag_profile, sop_class, present)
    for tag_profile, rest in sop_classes.items():  # headers without any standard tag
        for sop_class in rest:
            sets.add(tag_profile, sop_class, frozenset())
    database.create("attribute_sets", sets.tabulate_combinations())
    database.create("attributes", sets.tabulate_attributes())


def _standard_tags(database: Database) -> Iterator[tuple[int, frozenset[str]]]:
    """The standard (not private) tags of each tag profile."""
    for rows in database.fetch_batches(
        "SELECT tag_profile, list(tag) AS tags FROM tag_profile_tags WHERE creator IS NULL GROUP BY tag_profile",
        _PROFILES_AT_ONCE,
    ):
        for row in rows.to_pylist():
            yield row["tag_profile"], frozenset(row["tags"])


def _create_values(database: Database) -> None:
    """Create `profile_values`: the state of the catalogue's values, by state profile and tag."""
    rows = [
        {"tag": c.tag, "is_whole_value": c.is_whole_value, "word": f"values{c.word}", "shift": c.shift}
        for c in value_columns()
    ]
    database.create("value_columns", pa.Table.from_pylist(rows))
    database.create("catalogued", pa.table({"tag": sorted({tag_text(column.tag) for column in catalogue()})}))
    selects = [
        f"""SELECT state_profile, tag, is_whole_value, ({word} >> shift) & 3 AS value
            FROM state_profiles, value_columns WHERE word = '{word}'"""
        for word in packed_columns()
    ]
    database.run(f"""
        CREATE TABLE profile_values AS
        SELECT state_profile, tag, bool_or(is_whole_value) AS is_whole_value, max(value) AS value
        FROM ({" UNION ALL ".join(selects)}) GROUP BY ALL
    """)


def _create_weights(database: Database, groups: Mapping[str, str]) -> None:
    """Create `weights` (of each group and level, how many entities have which set of state profiles), `profile_sets`
    (the sets by number) and `entities` (the set of each study and series)."""
    for level in ("series", "study"):
        database.run(f"CREATE TABLE {level}_sets AS {_sets(level, _ALL)}")
    selects = []
    for name, value in {"all": _ALL, **groups}.items():
        group_columns = f"'{name}' AS group_by, {value} AS \"group\""
        selects.append(f"""
            SELECT 'instance' AS level, {group_columns}, [state_profile] AS state_profiles, sum(n) AS n
            FROM occurrences GROUP BY ALL
        """)
        for level in ("series", "study"):
            sets = f"{level}_sets" if name == "all" else f"({_sets(level, value)})"
            selects.append(f"SELECT '{level}', '{name}', \"group\", state_profiles, count(*) FROM {sets} GROUP BY ALL")
    database.run("CREATE TABLE counted_sets AS " + " UNION ALL ".join(selects))
    database.run("""
        CREATE TABLE profile_sets AS
        SELECT row_number() OVER () AS profile_set, state_profiles
        FROM (SELECT DISTINCT state_profiles FROM counted_sets)
    """)
    database.run("""
        CREATE TABLE weights AS
        SELECT level, group_by, "group", profile_set, n FROM counted_sets JOIN profile_sets USING (state_profiles)
    """)
    database.run("""
        CREATE TABLE entities AS
        SELECT 'series' AS level, series AS entity, profile_set
        FROM series_sets JOIN profile_sets USING (state_profiles)
        UNION ALL
        SELECT 'study', study, profile_set FROM study_sets JOIN profile_sets USING (state_profiles)
    """)


_ALL = "'all'"


def _sets(level: str, value: str) -> str:
    """The state profiles of each entity of a level within each group."""
    return f"""
        SELECT {value} AS "group", {level}, list_sort(list(DISTINCT state_profile)) AS state_profiles
        FROM occurrences WHERE {level} IS NOT NULL GROUP BY ALL
    """


class _AttributeSets:
    """The attributes that apply to each combination of tag profile and SOP class; equal ones are one numbered set."""

    def __init__(self) -> None:
        self._combinations: list[tuple[int, str, int]] = []
        self._numbers: dict[tuple[int, str], int] = {}
        self._sets: list[tuple[Mapping[str, AttributeType], Mapping[str, AttributeType]]] = []

    def add(self, tag_profile: int, sop_class: str, present: frozenset[str]) -> None:
        """Add a combination; `present` are the standard tags of its tag profile."""
        attributes = find_attributes(sop_class, present)
        if attributes is None:
            return
        iod = find_iod(sop_class) or ""
        key = (id(attributes), iod)  # `_sets` keeps the object, so that no other one gets its id
        if key not in self._numbers:
            self._numbers[key] = len(self._sets)
            self._sets.append((attributes, find_functional_group_attributes(iod)))
        self._combinations.append((tag_profile, sop_class, self._numbers[key]))

    def tabulate_combinations(self) -> pa.Table:
        """Columns `tag_profile`, `sop_class` and `attribute_set`."""
        schema = pa.schema([("tag_profile", pa.int64()), ("sop_class", pa.string()), ("attribute_set", pa.int32())])
        return _to_table(self._combinations, schema)

    def tabulate_attributes(self) -> pa.Table:
        """Columns `attribute_set`, `tag` and `rank` (of its type)."""
        rows = [
            (number, tag, rank_type(attribute_type))
            for number, (attributes, in_functional_groups) in enumerate(self._sets)
            for tag, attribute_type in {**in_functional_groups, **attributes}.items()
        ]
        return _to_table(rows, pa.schema([("attribute_set", pa.int32()), ("tag", pa.string()), ("rank", pa.int8())]))


def _to_table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


# Private elements by creator, whichever block they are in: (0029,1008) of SIEMENS is 0029xx08. The elements with the
# creators (gggg,0010-00FF) only reserve blocks (PS3.5 7.8.1) and are not counted as tags.
_PROFILE_TAGS = """
    CREATE TABLE tag_profile_tags AS
    WITH marked AS (
        SELECT *, substr(tag, 4, 1) IN ('1', '3', '5', '7', '9', 'B', 'D', 'F') AS private,
               private AND substr(tag, 5, 2) = '00' AND substr(tag, 7, 2) >= '10' AS reservation
        FROM tag_profiles_in WHERE tag_profile IN (SELECT tag_profile FROM state_profiles)
    )
    SELECT tag_profile, CASE WHEN private AND nullif(creator, '') IS NOT NULL
                        THEN substr(tag, 1, 4) || 'xx' || substr(tag, 7, 2) ELSE tag END AS tag,
           CASE WHEN private THEN nullif(creator, '') END AS creator, max(status) AS status
    FROM marked WHERE NOT reservation GROUP BY ALL
"""

_UNDECIDED_IF_ABSENT = ", ".join(str(rank_type(name)) for name, rule in TYPES.items() if rule.if_absent == "undecided")

# `value` is a state of `value_states`, `status` that of the tag profile (1 empty, 2 filled)
_STATES = f"""
    CREATE TABLE states AS
    WITH sources AS (
        SELECT state_profile, tag, creator, status, NULL::INTEGER AS value, false AS is_whole_value,
               NULL::TINYINT AS rank
        FROM state_profiles JOIN tag_profile_tags USING (tag_profile)
        UNION ALL
        SELECT state_profile, tag, NULL, NULL, value, is_whole_value, NULL FROM profile_values
        UNION ALL
        SELECT state_profile, tag, NULL, NULL, NULL, false, rank
        FROM state_profiles JOIN attribute_sets USING (tag_profile, sop_class) JOIN attributes USING (attribute_set)
    ), merged AS (
        SELECT state_profile, tag, creator, max(status) AS status, max(value) AS value,
               bool_or(is_whole_value) AS is_whole_value, min(rank) AS rank
        FROM sources GROUP BY state_profile, tag, creator
    ), evaluated AS (
        SELECT state_profile, tag, creator, rank, is_whole_value,
               CASE WHEN value = {USABLE} THEN {FILLED}
                    WHEN value = {PLACEHOLDER} OR (status = 2 AND is_whole_value) THEN {UNUSABLE}
                    WHEN status = 2 THEN {FILLED}
                    WHEN status = 1 THEN {EMPTY}
                    WHEN rank IN ({_UNDECIDED_IF_ABSENT}) THEN {UNKNOWN}
                    ELSE {ABSENT} END AS state
        FROM merged
    )
    SELECT * FROM evaluated WHERE rank IS NOT NULL OR state >= {EMPTY}
"""

# Optional tags that no instance of the dataset has are dropped, unless they are in the catalogue.
_TRIM = f"""
    DELETE FROM states WHERE (tag, coalesce(creator, '')) IN (
        SELECT (tag, coalesce(creator, '')) FROM states WHERE tag NOT IN (SELECT tag FROM catalogued)
        GROUP BY tag, creator HAVING max(state) < {EMPTY} AND min(rank) = {rank_type("3")}
    )
"""

# Tags that have the same states in every state profile form a class, and are counted once. Most tags of an IOD do.
_TAG_CLASSES = """
    CREATE TABLE tag_classes AS
    SELECT tag, creator, is_whole_value, dense_rank() OVER (ORDER BY states) AS tag_class
    FROM (
        SELECT tag, creator, bool_or(is_whole_value) AS is_whole_value,
               list_sort(list((state_profile * 8 + state) * 8 + coalesce(rank, 7))) AS states
        FROM states GROUP BY tag, creator
    );
    CREATE TABLE class_states AS
    SELECT tag_class, state_profile, any_value(rank) AS rank, any_value(state) AS state
    FROM states s JOIN tag_classes c ON c.tag = s.tag AND c.creator IS NOT DISTINCT FROM s.creator
    GROUP BY tag_class, state_profile
"""

_SET_STATES = f"""
    CREATE TABLE set_states AS
    SELECT profile_set, tag_class, min(rank) AS rank,
           CASE WHEN min(state) = {FILLED} THEN 'filled'
                WHEN max(state) = {FILLED} THEN 'partial'
                ELSE ['unknown', 'absent', 'empty', 'unusable'][max(state) + 1] END AS state
    FROM (SELECT profile_set, unnest(state_profiles) AS state_profile FROM profile_sets)
    JOIN class_states USING (state_profile)
    GROUP BY profile_set, tag_class
"""
