"""The state of every tag of every instance, and the counts that everything else is made from.

Instances that share tag profile, SOP class and usable values share the state of all their tags: one *profile*. What is
counted is never an instance but a profile with a number, and a series or study is the set of the profiles of its
instances. A million instances come down to some thousand rows, and a tag is judged once per profile.

Per instance and tag, exactly one of

- `filled`: a value that can be used; for tags that enhanced objects keep in functional groups, the resolved value;
- `unusable`: a value that fits not its VR, or a dummy for that tag (catalogue only);
- `empty`, `absent`: by the tag profile;
- `unknown`: absent where Type 1C or 2C asks for it under a condition, which is not evaluated.

A tag applies to an instance when its IOD lists it or when it is there. An instance of an unknown SOP class has no IOD:
only what is there applies. So at every level

    n_filled + n_some + n_unusable + n_empty + n_absent + n_unknown = n_applicable

where `n_some` is 0 for instances. Series and studies count the instances to which the tag applies: all filled, some
filled, else the best state among them in the order unusable, empty, absent, unknown.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.quality.requirements import Requirement, applicable, iod_of
from dicom_etl.quality.usability import packed_names, packed_states, watched

__all__ = ["GROUPS", "PLACE_COLUMNS", "REQUIREMENTS", "States", "occurrences", "opened"]

# Name of a group-by -> the column of the header table it comes from.
GROUPS: Mapping[str, str] = {
    "subject": "subject",
    "modality": "Modality",
    "sop_class": "SOPClassUID",
    "manufacturer": "Manufacturer",
    "model": "ManufacturerModelName",
    "study_year": "StudyDate",
}
PLACE_COLUMNS = (*GROUPS.values(), "StudyInstanceUID", "SeriesInstanceUID", "tag_profile", "duplicate")
REQUIREMENTS: tuple[Requirement, ...] = ("1", "1C", "2", "2C", "3")

_PROFILES_AT_ONCE = 2_000


def occurrences(place: pa.Table, blocks: Iterable[pa.Table]) -> pa.Table:
    """What the header rows of a unit come down to: distinct groups, series and profiles with their number `n`.

    Args:
        place: the columns `PLACE_COLUMNS` of the rows.
        blocks: the catalogue columns of the same rows in the same order, some columns at a time.
    """
    columns = {
        "study": place["StudyInstanceUID"],
        "series": place["SeriesInstanceUID"],
        "tag_profile": place["tag_profile"],
        **{name: place[column] for name, column in GROUPS.items()},
        **packed_states(blocks, place.num_rows),
    }
    columns["study_year"] = pc.cast(pc.year(place["StudyDate"]), pa.string())
    rows = pa.table(columns).filter(pc.is_null(place["duplicate"]))
    counted = rows.append_column("one", pa.array([1] * rows.num_rows, pa.int64()))
    grouped = counted.group_by(list(columns)).aggregate([("one", "sum")])
    return grouped.rename_columns({"one_sum": "n"}).select([*columns, "n"])


@contextmanager
def opened(found: pa.Table, tag_profiles: pa.Table) -> Iterator[States]:
    """The states of the occurrences of a dataset; `tag_profiles` resolves them (a superset does no harm)."""
    with tempfile.TemporaryDirectory(prefix="dicom-etl-") as spill, duckdb.connect() as database:
        # in-memory databases would spill into the current folder
        database.execute("SET temp_directory = ?", [spill])
        yield States(database, found, tag_profiles)


class States:
    """The states of the tags of a dataset, for queries. Made by `opened`."""

    def __init__(self, database: duckdb.DuckDBPyConnection, found: pa.Table, tag_profiles: pa.Table) -> None:
        self._database = database
        words = ", ".join(packed_names())
        self._register("found", found)
        self._register("tag_profiles_in", tag_profiles)
        self._run(f"""
            CREATE TABLE occurrences AS
            SELECT *, dense_rank() OVER (ORDER BY tag_profile, sop_class, {words}) AS profile FROM found
        """)
        self._run(f"CREATE TABLE profiles AS SELECT DISTINCT profile, tag_profile, sop_class, {words} FROM occurrences")
        self._run(_PROFILE_TAGS)
        self._make_requirements()
        self._make_values()
        self._run(_STATES)
        self._run(_TRIM)
        self._make_weights()
        self._run(_OUTCOMES)

    def query(self, sql: str) -> pa.Table:
        """Rows of the tables `occurrences`, `profiles`, `states`, `weights`, `outcomes`, `entities`."""
        return self._database.sql(sql).to_arrow_table()

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """As `query`, as dictionaries."""
        rows: list[dict[str, Any]] = self.query(sql).to_pylist()
        return rows

    def _run(self, sql: str) -> None:
        self._database.execute(sql)

    def _register(self, name: str, table: pa.Table) -> None:
        self._database.register(name, table)

    def _make_requirements(self) -> None:
        """Tables `demands` (profile -> set of requirements) and `required` (set -> tag, rank of its type)."""
        found = self.query("SELECT DISTINCT tag_profile, sop_class FROM profiles WHERE sop_class IS NOT NULL")
        by_tag_profile: dict[int, list[str]] = {}
        for row in found.to_pylist():
            by_tag_profile.setdefault(row["tag_profile"], []).append(row["sop_class"])
        demands = _Demands()
        for tag_profile, present in self._standard_tags():
            for sop_class in by_tag_profile.pop(tag_profile, ()):
                demands.add(tag_profile, sop_class, present)
        for tag_profile, sop_classes in by_tag_profile.items():  # a header of nothing at all
            for sop_class in sop_classes:
                demands.add(tag_profile, sop_class, frozenset())
        self._register("demands_in", demands.table())
        self._register("required_in", demands.sets())
        self._run("CREATE TABLE demands AS SELECT * FROM demands_in")
        self._run("CREATE TABLE required AS SELECT * FROM required_in")

    def _standard_tags(self) -> Iterator[tuple[int, frozenset[str]]]:
        """The tags of each tag profile that the standard knows."""
        result = self._database.cursor().execute("""
            SELECT tag_profile, list(tag) AS tags FROM tag_profile_tags
            WHERE creator IS NULL AND tag_profile IN (SELECT tag_profile FROM profiles) GROUP BY tag_profile
        """)
        while rows := result.fetchmany(_PROFILES_AT_ONCE):
            for tag_profile, tags in rows:
                yield tag_profile, frozenset(tags)

    def _make_values(self) -> None:
        """Table `value_columns`: where the state of a catalogue column is packed, and for which tag it counts."""
        rows = [{"tag": c.tag, "own": c.own, "word": f"values{c.word}", "shift": c.shift} for c in watched()]
        self._register("value_columns", pa.Table.from_pylist(rows))
        listed = sorted({tag_text(column.tag) for column in catalogue()})
        self._register("catalogued", pa.table({"tag": listed}))
        parts = [
            f"""SELECT profile, tag, own, ({word} >> shift) & 3 AS value
                FROM profiles, value_columns WHERE word = '{word}'"""
            for word in packed_names()
        ]
        self._run(f"""
            CREATE TABLE profile_values AS
            SELECT profile, tag, bool_or(own) AS own, max(value) AS value
            FROM ({" UNION ALL ".join(parts)}) GROUP BY ALL
        """)

    def _make_weights(self) -> None:
        """Table `weights`: in each group of each level, how many entities have which set of profiles."""
        groups = {"all": "'all'", **{name: f'"{name}"' for name in GROUPS}}
        parts = []
        for name, column in groups.items():
            common = f"'{name}' AS group_by, {column} AS \"group\""
            parts += [
                f"SELECT 'instance' AS level, {common}, [profile] AS members, n FROM occurrences",
                f"""SELECT 'series', {common}, list_sort(list(DISTINCT profile)), 1 FROM occurrences
                    WHERE study IS NOT NULL AND series IS NOT NULL GROUP BY "group", study, series""",
                f"""SELECT 'study', {common}, list_sort(list(DISTINCT profile)), 1 FROM occurrences
                    WHERE study IS NOT NULL GROUP BY "group", study""",
            ]
        self._run(f"""
            CREATE TABLE weights AS
            SELECT level, group_by, "group", members, sum(n) AS n FROM ({" UNION ALL ".join(parts)}) GROUP BY ALL
        """)
        self._run("""
            CREATE TABLE member_sets AS
            SELECT members, row_number() OVER () AS entity FROM (SELECT DISTINCT members FROM weights)
        """)
        self._run("""
            CREATE TABLE entities AS
            SELECT level, study, series, entity FROM (
                SELECT 'series' AS level, study, series, list_sort(list(DISTINCT profile)) AS members FROM occurrences
                WHERE study IS NOT NULL AND series IS NOT NULL GROUP BY study, series
                UNION ALL
                SELECT 'study', study, NULL, list_sort(list(DISTINCT profile)) FROM occurrences
                WHERE study IS NOT NULL GROUP BY study
            ) JOIN member_sets USING (members)
        """)


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

_OUTCOMES = """
    CREATE TABLE outcomes AS
    SELECT entity, tag, creator, min(rank) AS rank, bool_or(own) AS own,
           CASE WHEN min(state) = 4 THEN 'filled'
                WHEN max(state) = 4 THEN 'some'
                ELSE ['unknown', 'absent', 'empty', 'unusable'][max(state) + 1] END AS outcome
    FROM (SELECT entity, unnest(members) AS profile FROM member_sets) JOIN states USING (profile)
    GROUP BY entity, tag, creator
"""
