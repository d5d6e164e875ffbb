"""The tables of a lake as pandas data frames, for notebooks.

Reads tables that stages have written, and nothing else: no source, no settings, no server. Runs may go on meanwhile.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.errors import UserError
from dicom_etl.inspection.findings import read_findings
from dicom_etl.lake.location import has_lake
from dicom_etl.lake.schemas import (
    ALL_FINDINGS,
    COMPLETENESS,
    COUNT,
    IDENTITIES,
    INVENTORY,
    STRING,
    UPLOAD_LEDGER,
    Table,
    header_table,
)
from dicom_etl.lake.shard_reader import read_shards, read_unit
from dicom_etl.lake.tables import Lake
from dicom_etl.renames import COLUMNS, describe_rename

if TYPE_CHECKING:
    import pandas as pd

_CATEGORIES = frozenset(  # columns with few different values
    "code dataset duplicate group_by level Modality requirement role rule server severity stage state type".split()
)
_STUDIES = pa.schema(
    [
        ("dataset", STRING),
        ("unit", STRING),
        ("subject", STRING),
        ("study_uid", STRING),
        ("date", pa.date32()),
        ("description", STRING),
        ("modalities", STRING),
        ("series", COUNT),
        ("instances", COUNT),
        ("rule", STRING),
        ("state", STRING),
        ("reason", STRING),
        ("patient", STRING),
    ]
)


class LakeQueryError(UserError):
    """A query names a lake, dataset, subject or column that does not exist; the text names those that do."""


def open_lake(path: str) -> LakeView:
    """Open a lake for reading.

    Args:
        path: folder or URL of the lake, as in the setting `lake`.

    Raises:
        LakeQueryError: there is no lake.
        LakeError: it cannot be read by this version of dicom-etl.

    Example:
        >>> import dicom_etl
        >>> lake = dicom_etl.open_lake("lake")
        >>> lake.datasets
        ['breast', 'heart']
        >>> lake.headers("breast", columns=["Modality", "SliceThickness"], subject="sub-1").describe()
    """
    root = str(path)
    try:
        is_lake = has_lake(root)
    except (ImportError, ValueError) as error:  # of fsspec: the package of a file system, or the file system itself
        raise LakeQueryError(f"the location {root} cannot be opened: {error}") from None
    if not is_lake:
        raise LakeQueryError(f"there is no lake at {root}: name the folder that contains lake.json")
    return LakeView(Lake(root).open())


class LakeView:
    """A lake, read as pandas data frames; made by `open_lake`.

    Each method reads only the columns, datasets and subjects that it is asked for. Types: text is `string`, text of
    few values `category`, integers are nullable (`Int64`), flags `boolean`, dates `date32[day][pyarrow]` (which have
    the accessor `.dt`), times `datetime64[us, UTC]`, and numbers `float64`.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def __repr__(self) -> str:
        return f"LakeView({self._lake.root!r})"

    @property
    def datasets(self) -> list[str]:
        """The names of the datasets, sorted."""
        return self._lake.datasets()

    def headers(self, dataset: str, columns: Sequence[str] | None = None, subject: str | None = None) -> pd.DataFrame:
        """The header table of a dataset: one row per DICOM file.

        Args:
            dataset: name of the dataset.
            columns: names of the columns, in the order of the data frame; None: all of them. They are the column names
                of the tag catalogue (docs), and `dataset`, `unit`, `subject`, `sample`, `role`, `path`, `duplicate`,
                `tag_profile`.
            subject: only the rows of this subject; only the row groups that may contain it are read.

        Raises:
            LakeQueryError: there is no such dataset, column or subject.
            DamagedShardError: a file of the lake is damaged.

        Example:
            >>> lake.headers("breast", columns=["path", "Modality", "StudyDate"], subject="sub-1")
        """
        self._check_dataset(dataset)
        table = header_table()
        names = _check_columns(table.name, table.schema, columns)
        if subject is None:
            batches: Iterable[pa.Table] = read_shards(self._lake, table, names, dataset=dataset)
        else:
            batches = self._read_subject(table, names, dataset, subject)
        return _to_frame(pa.schema([table.schema.field(name) for name in names]), batches)

    def findings(self, dataset: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The findings of all stages: one row per finding, with its code, severity, location and message.

        Those of a dataset that has been measured are as of its last measurement.

        Args:
            dataset: only this dataset; None: all datasets.
            columns: names of the columns; None: all of them.

        Raises:
            LakeQueryError: there is no such dataset or column.

        Example:
            >>> lake.findings("breast").groupby(["severity", "code"], observed=True)["count"].sum()
        """
        return self._collect(
            ALL_FINDINGS.name,
            ALL_FINDINGS.schema,
            dataset,
            columns,
            lambda name, names: read_findings(self._lake, name, names),
        )

    def completeness(self, dataset: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """How often each tag is filled, empty or absent: one row per tag, level and group.

        Args:
            dataset: only this dataset; None: all datasets that have been measured.
            columns: names of the columns; None: all of them.

        Raises:
            LakeQueryError: there is no such dataset or column, or the dataset has not been measured.
        """
        if dataset is not None:
            self._check_dataset(dataset)
            if not self._lake.exists(COMPLETENESS.path(dataset=dataset)):
                command = f"dicom-etl measure {dataset}"
                raise LakeQueryError(f"dataset {dataset} has not been measured: run `{command}` first")
        return self._collect(
            COMPLETENESS.name,
            COMPLETENESS.schema,
            dataset,
            columns,
            lambda name, names: self._lake.read_batches(COMPLETENESS, names, dataset=name),
        )

    def studies(self, dataset: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The studies: one row per study and unit that contains files of it.

        Columns: `dataset`, `unit`, `subject`, `study_uid`, `date` and `description` (StudyDate and StudyDescription;
        the least one where instances disagree), `modalities` (sorted, such as `CT, SR`), `series` and `instances`
        (without duplicates), then the result of patient matching: `rule`, `state` (`ok` or `held`), `reason`, and
        `patient` (the id of the Patient resource). These four are missing for a dataset that has not been built.

        Args:
            dataset: only this dataset; None: all datasets.
            columns: names of the columns; None: all of them.

        Raises:
            LakeQueryError: there is no such dataset or column.
        """
        return self._collect("studies", _STUDIES, dataset, columns, lambda name, _: _read_studies(self._lake, name))

    def uploads(self, dataset: str | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The resources in the upload ledger, as of the last upload: one row per server and resource.

        Args:
            dataset: only this dataset; None: all datasets.
            columns: names of the columns; None: all of them.

        Raises:
            LakeQueryError: there is no such dataset or column.
        """

        def read(name: str, names: list[str]) -> Iterator[pa.Table]:
            for folder in self._lake.list_names("upload_ledger"):  # one per server; its name is encoded
                table = replace(UPLOAD_LEDGER, path_template=f"upload_ledger/{folder}/{{dataset}}.parquet")
                yield self._lake.read(table, names, dataset=name)

        return self._collect(UPLOAD_LEDGER.name, UPLOAD_LEDGER.schema, dataset, columns, read)

    def _select(self, dataset: str | None) -> list[str]:
        if dataset is None:
            return self.datasets
        self._check_dataset(dataset)
        return [dataset]

    def _check_dataset(self, dataset: str) -> None:
        names = self.datasets
        if dataset not in names:
            raise LakeQueryError(f"the lake has no dataset {dataset!r}; it has {', '.join(names) or 'none'}")

    def _collect(
        self,
        table_name: str,
        schema: pa.Schema,
        dataset: str | None,
        columns: Sequence[str] | None,
        read: Callable[[str, list[str]], Iterable[pa.Table]],
    ) -> pd.DataFrame:
        names = _check_columns(table_name, schema, columns)
        batches = (batch for dataset_name in self._select(dataset) for batch in read(dataset_name, names))
        return _to_frame(pa.schema([schema.field(name) for name in names]), batches)

    def _read_subject(self, table: Table, names: list[str], dataset: str, subject: str) -> Iterator[pa.Table]:
        """The rows of a subject; the inventory says in which units they are."""
        if not isinstance(subject, str):
            raise LakeQueryError(f"a subject is a text, such as 'sub-1', not {subject!r}")
        units = self._lake.read_between(INVENTORY, {"subject": (subject, subject)}, ["unit"], dataset=dataset)
        if not units.num_rows:
            subjects = pc.unique(self._lake.read(INVENTORY, ["subject"], dataset=dataset)["subject"].drop_null())
            raise LakeQueryError(f"{dataset} has no subject {subject!r}{_suggest(subject, subjects.to_pylist())}")
        for unit in sorted(pc.unique(units["unit"]).to_pylist()):
            rows = read_unit(self._lake, table, list({*names, "subject"}), dataset=dataset, unit=unit)
            yield rows.filter(pc.equal(rows["subject"], subject)).select(names)


def _check_columns(table_name: str, schema: pa.Schema, columns: Sequence[str] | None) -> list[str]:
    existing: list[str] = schema.names
    if columns is None:
        return existing
    names: list[str] = list(dict.fromkeys([columns] if isinstance(columns, str) else columns))
    for name in names:
        if name not in existing:
            name = str(name)  # noqa: PLW2901  (a number by mistake is refused like a misspelt name)
            raise LakeQueryError(
                describe_rename(COLUMNS.get(table_name, {}), name, "column")
                or f"the table {table_name} has no column {name!r}{_suggest(name, existing)}"
            )
    return names


def _suggest(name: str, existing: Sequence[str]) -> str:
    similar = difflib.get_close_matches(name, existing, n=3)
    if not similar:  # the same word in another case, or a part of a name
        similar = [other for other in existing if name.lower() in other.lower()][:3]
    if similar:
        return f": did you mean {' or '.join(similar)}?"
    return f"; there are {', '.join(sorted(existing)[:20])}{' and more' if len(existing) > 20 else ''}"


def _read_studies(lake: Lake, dataset: str) -> Iterator[pa.Table]:
    """The studies of a dataset, shard by shard; the rows of a unit are in one shard."""
    matching = lake.read(IDENTITIES, ["study_uid", "unit", "rule", "state", "reason", "patient"], dataset=dataset)
    matches = {(row.pop("study_uid"), row.pop("unit")): row for row in matching.to_pylist()}
    keys = ["dataset", "unit", "subject", "StudyInstanceUID"]
    columns = [*keys, "StudyDate", "StudyDescription", "Modality", "SeriesInstanceUID", "duplicate"]
    for rows in read_shards(lake, header_table(), columns, dataset=dataset):
        instances = rows.filter(pc.and_(pc.is_null(rows["duplicate"]), pc.is_valid(rows["StudyInstanceUID"])))
        studies = instances.group_by(keys, use_threads=False).aggregate(
            [
                ("StudyDate", "min"),
                ("StudyDescription", "min"),
                ("Modality", "distinct"),
                ("SeriesInstanceUID", "count_distinct"),
                ([], "count_all"),
            ]
        )
        records = [
            {
                **{name: study[name] for name in ("dataset", "unit", "subject")},
                "study_uid": study["StudyInstanceUID"],
                "date": study["StudyDate_min"],
                "description": study["StudyDescription_min"],
                "modalities": ", ".join(sorted(filter(None, study["Modality_distinct"]))) or None,
                "series": study["SeriesInstanceUID_count_distinct"],
                "instances": study["count_all"],
                **matches.get((study["StudyInstanceUID"], study["unit"]), {}),
            }
            for study in studies.to_pylist()
        ]
        records.sort(key=lambda record: (record["unit"], record["study_uid"]))
        yield pa.Table.from_pylist(records, schema=_STUDIES)


# -- pandas -----------------------------------------------------------------------------------------------------------


def _to_frame(schema: pa.Schema, batches: Iterable[pa.Table]) -> pd.DataFrame:
    """Batches of rows, which have at least the columns of the schema, as one data frame."""
    import pandas as pd

    rows = pa.concat_tables([schema.empty_table(), *(batch.select(schema.names) for batch in batches)])
    types: dict[pa.DataType, Any] = {
        pa.string(): pd.StringDtype("pyarrow"),
        pa.int64(): pd.Int64Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.bool_(): pd.BooleanDtype(),
        pa.date32(): pd.ArrowDtype(pa.date32()),
    }
    for position, name in enumerate(schema.names):
        if name in _CATEGORIES:
            rows = rows.set_column(position, name, rows[name].combine_chunks().dictionary_encode())
    frame: pd.DataFrame = rows.to_pandas(types_mapper=types.get, split_blocks=True, self_destruct=True)
    return frame
