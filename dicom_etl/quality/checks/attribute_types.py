"""Checks of required attributes: Type 1 ones are present with a value, Type 2 ones are present (PS3.5 section 7.4).

The rule itself is `requirements.TYPES`; here it becomes conditions on the states of tags (`tag_states`).

Not here: the counts of all tags, required or not (`completeness`).
"""

from __future__ import annotations

import pyarrow as pa
from pydicom.datadict import keyword_for_tag

from dicom_etl.quality.check_table import Measure, quality_checks
from dicom_etl.quality.checks.conformance import name_sop_class
from dicom_etl.quality.checks.counting import MeasuredDataset
from dicom_etl.quality.requirements import TYPES, AttributeType, rank_type
from dicom_etl.quality.tag_states import ABSENT, EMPTY

__all__ = ["VIOLATIONS", "count_type_1", "count_type_2"]

_TYPES_OF_CHECK: dict[str, tuple[AttributeType, ...]] = {"type-1": ("1", "1C"), "type-2": ("2", "2C")}
_CODES = {"type-1": "type-1-missing", "type-2": "type-2-missing"}
_GROUPS = {"all": "'all'", "modality": "modality", "manufacturer": "manufacturer"}


def _is_violation(attribute_types: tuple[AttributeType, ...]) -> str:
    """A condition on a row of `states`: the tag violates its type."""
    conditions = []
    for name in attribute_types:
        if TYPES[name].if_absent == "violation":
            conditions.append(f"(rank = {rank_type(name)} AND state = {ABSENT})")
        if TYPES[name].if_empty == "violation":
            conditions.append(f"(rank = {rank_type(name)} AND state = {EMPTY})")
    return f"({' OR '.join(conditions)})"


def _is_decidable(attribute_types: tuple[AttributeType, ...]) -> str:
    """A condition on a row of `states`: the type can be violated, and it is known whether it is."""
    conditions = []
    for name in attribute_types:
        if TYPES[name].if_absent == "violation":
            conditions.append(f"rank = {rank_type(name)}")
        elif TYPES[name].if_empty == "violation":
            conditions.append(f"(rank = {rank_type(name)} AND state >= {EMPTY})")
    return f"({' OR '.join(conditions)})"


VIOLATIONS = {check: _is_violation(types) for check, types in _TYPES_OF_CHECK.items()}
_DECIDABLE = {check: _is_decidable(types) for check, types in _TYPES_OF_CHECK.items()}


def count_type_1(dataset: MeasuredDataset) -> list[Measure]:
    """Check `type-1`: Type 1 attributes are present with a value, and Type 1C ones are not empty."""
    return _count_type(dataset, "type-1")


def count_type_2(dataset: MeasuredDataset) -> list[Measure]:
    """Check `type-2`: Type 2 attributes are present, even if they are empty."""
    return _count_type(dataset, "type-2")


def _count_type(dataset: MeasuredDataset, check: str) -> list[Measure]:
    _add_findings(dataset, check)
    return [*_count_instances(dataset, check), *_count_tags(dataset, check)]


def _count_instances(dataset: MeasuredDataset, check: str) -> list[Measure]:
    """Instances of known SOP classes without a violation, over all and by modality."""
    return [
        _make_measure(check, row["n_pass"], row["n_fail"], group_by, row["group"])
        for group_by in ("all", "modality")
        for row in dataset.database.fetch_rows(f"""
            WITH violations AS (
                SELECT state_profile, bool_or({VIOLATIONS[check]}) AS is_violation FROM states GROUP BY state_profile
            )
            SELECT {_GROUPS[group_by]} AS "group",
                   coalesce(sum(n) FILTER (WHERE NOT is_violation), 0)::BIGINT AS n_pass,
                   coalesce(sum(n) FILTER (WHERE is_violation), 0)::BIGINT AS n_fail
            FROM profile_counts JOIN state_profiles USING (state_profile)
            JOIN attribute_sets USING (tag_profile, sop_class) JOIN violations USING (state_profile)
            GROUP BY ALL ORDER BY ALL
        """)
    ]


def _count_tags(dataset: MeasuredDataset, check: str) -> list[Measure]:
    """The tags that violate their type: one measure per group, tag and reason."""
    measures = []
    for group_by, column in _GROUPS.items():
        for row in dataset.database.fetch_rows(f"""
            SELECT {column} AS "group", tag,
                   coalesce(sum(n) FILTER (WHERE {_DECIDABLE[check]}), 0)::BIGINT AS n_applicable,
                   coalesce(sum(n) FILTER (WHERE {VIOLATIONS[check]} AND state = {ABSENT}), 0)::BIGINT AS absent,
                   coalesce(sum(n) FILTER (WHERE {VIOLATIONS[check]} AND state = {EMPTY}), 0)::BIGINT AS empty
            FROM profile_counts JOIN states USING (state_profile)
            GROUP BY "group", tag HAVING absent + empty > 0 ORDER BY "group", tag
        """):
            n_pass = row["n_applicable"] - row["absent"] - row["empty"]
            result = quality_checks()[check].evaluate(row["n_applicable"], n_pass)
            measures += [
                Measure(
                    check,
                    quality_checks()[check].category,
                    "instance",
                    row["n_applicable"],
                    n_pass,
                    row[reason],
                    result,
                    group_by,
                    row["group"],
                    row["tag"],
                    reason,
                )
                for reason in ("absent", "empty")
                if row[reason]
            ]
    return measures


def _make_measure(check: str, n_pass: int, n_fail: int, group_by: str, group: str | None) -> Measure:
    n_applicable = n_pass + n_fail
    result = quality_checks()[check].evaluate(n_applicable, n_pass)
    category = quality_checks()[check].category
    return Measure(check, category, "instance", n_applicable, n_pass, n_fail, result, group_by, group)


def _add_findings(dataset: MeasuredDataset, check: str) -> None:
    """One finding per SOP class and tag: the instances of a series nearly always have the same violations."""
    rows = dataset.database.fetch_rows(f"""
        SELECT sop_class, tag, CASE state WHEN {ABSENT} THEN 'absent' ELSE 'empty' END AS reason, sum(n)::BIGINT AS n
        FROM profile_counts JOIN state_profiles USING (state_profile) JOIN states USING (state_profile)
        WHERE {VIOLATIONS[check]} GROUP BY ALL ORDER BY ALL
    """)
    findings = [
        {
            "tag": row["tag"],
            "value": name_sop_class(row["sop_class"]),
            "message": f"{keyword_for_tag(int(row['tag'], 16)) or row['tag']} is {row['reason']}",
            "count": row["n"],
        }
        for row in rows
    ]
    schema = pa.schema([("tag", pa.string()), ("value", pa.string()), ("message", pa.string()), ("count", pa.int64())])
    dataset.add_findings(_CODES[check], pa.Table.from_pylist(findings, schema=schema))
