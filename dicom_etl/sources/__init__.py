"""Where files come from: the Source protocol and its kinds. A new kind is a class and a line in `KINDS`."""

from dicom_etl.settings import DatasetSettings
from dicom_etl.sources.base import Entry, Scan, Source, SourceError
from dicom_etl.sources.filelist import ListSource
from dicom_etl.sources.tree import TreeSource

KINDS: dict[str, type[Source]] = {"list": ListSource, "tree": TreeSource}

__all__ = ["KINDS", "Entry", "ListSource", "Scan", "Source", "SourceError", "TreeSource", "open_source"]


def open_source(dataset: str, settings: DatasetSettings) -> Source:
    """The source of a dataset.

    Raises:
        SourceError: its root is not there; one sentence.
    """
    return KINDS[settings.kind].of(dataset, settings)
