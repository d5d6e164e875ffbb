"""measure: header rows, tag profiles, files, sheets, findings, resources -> `quality/D`.

Each unit is read by itself, a few columns at a time, and comes down to counts; the dataset is judged from those.
`findings` is written last and is the commit. Nothing is made when nothing that it was made from changed.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pydicom.datadict import tag_for_keyword

from dicom_etl.engine import Progress
from dicom_etl.fhir.context import SHEET_GENDERS, samples_of
from dicom_etl.findings import Finding, findings_table
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.lake.fingerprints import fingerprint, version_of
from dicom_etl.lake.schemas import (
    ALL_FINDINGS,
    COMPLETENESS,
    DATASET_FINDINGS,
    FILES,
    FINDINGS,
    IDENTITIES,
    INVENTORY,
    MEASURES,
    RESOURCES,
    SHEETS,
    TAG_PROFILES,
    Table,
    headers,
    place,
)
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.checks import Measure, checks, measures_table
from dicom_etl.quality.completeness import completeness
from dicom_etl.quality.consistency import consistency, sheets_of
from dicom_etl.quality.facts import FACT_COLUMNS, by_series, by_study, facts
from dicom_etl.quality.measures import file_measures, inventory, outcomes_of, standard_measures
from dicom_etl.quality.readiness import WATCHED_KEYWORDS, Built, collect, readiness
from dicom_etl.quality.states import PLACE_COLUMNS, States, occurrences, opened
from dicom_etl.quality.usability import watched
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError

# Raised when the code that measures changes what it says of the same tables.
MEASURE_VERSION = 2

_STAGES = ("crawl", "extract", "build", "upload")
_VALUES_AT_ONCE = 4_000_000  # of header columns in memory, some 200 MB
_TABLES = (
    "dicom_etl:codes.csv",
    "dicom_etl.headers:catalogue.csv",
    "dicom_etl.fhir.tables:annex_l.json",
    "dicom_etl.fhir.tables:body_part_aliases.csv",
    *(f"dicom_etl.quality.tables:{name}.json" for name in ("checks", "dummies", "functional_groups", "requirements")),
)


@dataclass(frozen=True)
class Measured:
    """What a measurement found. `made` is False where nothing had changed."""

    dataset: str
    made: bool
    units: int
    instances: int
    gates: Mapping[str, int]  # verdicts by status, of the checks that something applies to
    findings: Mapping[str, int]  # by severity


@dataclass
class _Collected:
    """What the units come down to."""

    occurrences: list[pa.Table] = field(default_factory=list)
    tag_profiles: list[pa.Table] = field(default_factory=list)
    facts: list[pa.Table] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    copies: Counter[str | None] = field(default_factory=Counter)
    findings: list[pa.Table] = field(default_factory=list)
    built: Built = field(default_factory=Built)


def measure(
    dataset: str,
    lake: Lake,
    settings: Settings,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Measured:
    """Measure the quality of a dataset, unless it was measured as it is.

    Raises:
        SourceError: there are no header tables.
    """
    with lake.lock(dataset, f"measure of {dataset}"):
        units = _units(lake, dataset)
        if not units:
            raise SourceError(f"dataset {dataset}: there are no header tables; extract it first")
        mark = _mark(lake, dataset, units, settings)
        made = force or not _is_made(lake, dataset, mark)
        if made:
            _make(lake, dataset, units, settings, mark, progress)
        return _summary(lake, dataset, made=made, units=len(units))


def _make(lake: Lake, dataset: str, units: list[str], settings: Settings, mark: str, progress: Progress) -> None:
    for table in (ALL_FINDINGS, MEASURES, COMPLETENESS):  # no commit while the tables change
        lake.remove(table.path(dataset=dataset))
    lake.sweep(ALL_FINDINGS.path(dataset=dataset).rpartition("/")[0])
    collected = _collect(lake, dataset, units, progress)
    with opened(pa.concat_tables(collected.occurrences), pa.concat_tables(collected.tag_profiles)) as states:
        lake.write(COMPLETENESS, completeness(dataset, states), fingerprint=mark, dataset=dataset)
        measures, own = _judge(lake, dataset, collected, states, settings)
    lake.write(MEASURES, measures_table(dataset, measures), fingerprint=mark, dataset=dataset)
    found = pa.concat_tables([*collected.findings, findings_table(own)])
    lake.write(ALL_FINDINGS, found, fingerprint=mark, dataset=dataset)


# -- whether to measure -----------------------------------------------------------------------------------------------


def _units(lake: Lake, dataset: str) -> list[str]:
    """The units of the inventory whose header table is committed."""
    units = pc.unique(lake.read(INVENTORY, ["unit"], dataset=dataset)["unit"]).to_pylist()
    return sorted(u for u in units if lake.fingerprint(FILES, dataset=dataset, unit=u) is not None)


def _mark(lake: Lake, dataset: str, units: list[str], settings: Settings) -> str:
    """The fingerprint of all that the measures are made from."""
    per_unit = [
        (
            unit,
            *(lake.fingerprint(table, dataset=dataset, unit=unit) for table in (headers(), FILES)),
            *(_findings_mark(lake, stage, dataset, unit) for stage in _STAGES[1:]),
        )
        for unit in units
    ]
    whole = [_content(lake, DATASET_FINDINGS, stage=stage, dataset=dataset) for stage in _STAGES]
    return fingerprint(
        MEASURE_VERSION,
        version_of(*_TABLES),
        _zone(settings, dataset),
        settings.as_of,
        _content(lake, SHEETS, dataset=dataset),
        per_unit,
        whole,
    )


def _findings_mark(lake: Lake, stage: str, dataset: str, unit: str) -> str | None:
    mark = lake.fingerprint(FINDINGS, stage=stage, dataset=dataset, unit=unit)
    return _content(lake, FINDINGS, stage=stage, dataset=dataset, unit=unit) if mark == "" else mark


def _content(lake: Lake, table: Table, **names: str) -> str:
    return fingerprint(*(column.to_pylist() for column in lake.read(table, None, **names).itercolumns()))


def _is_made(lake: Lake, dataset: str, mark: str) -> bool:
    return all(lake.fingerprint(t, dataset=dataset) == mark for t in (ALL_FINDINGS, MEASURES, COMPLETENESS))


def _zone(settings: Settings, dataset: str) -> str | None:
    own = settings.datasets.get(dataset)
    return (own.time_zone if own else None) or settings.time_zone


# -- reading the units ------------------------------------------------------------------------------------------------


def _collect(lake: Lake, dataset: str, units: list[str], progress: Progress) -> _Collected:
    collected = _Collected()
    sizes = {unit: lake.row_count(headers(), dataset=dataset, unit=unit) for unit in units}
    total, done = sum(sizes.values()), 0
    for unit in units:
        _collect_unit(collected, lake, dataset, unit, sizes[unit])
        done += sizes[unit]
        progress(f"measure {dataset}", done, total)
    collected.findings += [lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset) for stage in _STAGES]
    for row in lake.read(IDENTITIES, dataset=dataset).to_pylist():
        collected.built.persons[row["study_uid"]] = row
    return collected


def _collect_unit(collected: _Collected, lake: Lake, dataset: str, unit: str, rows: int) -> None:
    where = {"dataset": dataset, "unit": unit}
    needed = list(dict.fromkeys([*PLACE_COLUMNS, *FACT_COLUMNS]))
    places = lake.read(headers(), needed, **where)
    collected.occurrences.append(occurrences(places, _value_blocks(lake, where, rows)))
    collected.facts.append(facts(places))
    collected.tag_profiles.append(lake.read(TAG_PROFILES, None, **where))
    for mark in pc.value_counts(places["duplicate"]).to_pylist():
        collected.copies[mark["values"]] += mark["counts"]
    files = lake.read(FILES, ["subject", "kind", "reason"], **where)
    counted = files.group_by(["subject", "kind", "reason"]).aggregate([([], "count_all")])
    collected.files += counted.rename_columns({"count_all": "n"}).to_pylist()
    collected.findings += [lake.read(FINDINGS, None, stage=stage, **where) for stage in _STAGES]
    if lake.fingerprint(FINDINGS, stage="build", **where):
        for kind in ("Patient", "ImagingStudy"):
            lines = (lake.read_bytes(place(RESOURCES, type=kind, **where)) or b"").splitlines()
            collect(collected.built, unit, map(orjson.loads, lines))


def _value_blocks(lake: Lake, where: dict[str, str], rows: int) -> Iterator[pa.Table]:
    """The watched columns of a unit, as many at a time as memory allows."""
    names = [column.name for column in watched()]
    size = max(4, _VALUES_AT_ONCE // max(rows, 1))
    for start in range(0, len(names), size):
        yield lake.read(headers(), names[start : start + size], **where)


# -- judging the dataset ----------------------------------------------------------------------------------------------


def _judge(
    lake: Lake, dataset: str, collected: _Collected, states: States, settings: Settings
) -> tuple[list[Measure], list[Finding]]:
    studies = by_study(pa.concat_tables(collected.facts).to_pylist())
    series = by_series(studies)
    places = lake.read(INVENTORY, ["subject", "sample"], dataset=dataset).group_by(["subject", "sample"])
    folders = [(row["subject"], row["sample"]) for row in places.aggregate([]).to_pylist()]
    cells = lake.read(SHEETS, dataset=dataset).to_pylist()
    as_of = datetime.date.fromisoformat(settings.as_of) if settings.as_of else None
    judged = consistency(dataset, studies, series, folders, sheets_of(cells), as_of)
    standard, findings = standard_measures(dataset, states)
    tags = {tag_text(tag_for_keyword(keyword) or 0): keyword for keyword in WATCHED_KEYWORDS}
    ready = readiness(
        studies,
        series,
        outcomes_of(states, tags),
        collected.built,
        zone=_zone(settings, dataset) is not None,
        sex_in_sheet=frozenset(
            cell["subject"]
            for cell in cells
            if cell["sheet"] == "subjects" and cell["field"] == "sex" and cell["value"].lower() in SHEET_GENDERS
        ),
        samples=samples_of(cells),
    )
    measures = [
        *file_measures(collected.files, collected.copies),
        *inventory(states, series, [subject for subject, _ in folders if subject]),
        *standard,
        *judged.measures,
        *ready,
    ]
    return measures, [*findings, *judged.findings]


# -- the summary ------------------------------------------------------------------------------------------------------


def _summary(lake: Lake, dataset: str, *, made: bool, units: int) -> Measured:
    rows = lake.read(MEASURES, dataset=dataset).to_pylist()
    verdicts = [row for row in rows if row["tag"] is None and row["reason"] is None and row["group_by"] == "all"]
    gates = Counter(r["status"] for r in verdicts if r["n_applicable"] and checks()[r["check"]].gate)
    instances = sum(r["n_applicable"] for r in verdicts if (r["check"], r["level"]) == ("inventory", "instance"))
    found = pc.value_counts(lake.read(ALL_FINDINGS, ["severity"], dataset=dataset)["severity"]).to_pylist()
    findings = {row["values"]: row["counts"] for row in found}
    return Measured(dataset, made, units, instances, dict(sorted(gates.items())), dict(sorted(findings.items())))
