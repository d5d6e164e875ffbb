"""Sources: the files of datasets, listed and opened.

Kinds of source: `tree` (a folder tree) and `filelist` (a CSV file with one line per DICOM file). A new kind is a module
with a class that implements `base.Source`, an entry in `KINDS`, and its name in `settings.DatasetSettings.kind`;
`registry` chooses the kind of a dataset that is named on the command line, and `settings` resolves
roots that are paths.

Parts of a tree: `grammar` (what names of folders and files denote), `sheets` (SDS metadata sheets), `sheet_subjects`
(subjects by sheets), `archives` (all archive formats) and `zip` (one format; a new one is a package next to it and an
entry in `archives.FORMATS`).

For all kinds: `registry` (the datasets of the settings and the command line) and `prefetch` (opening in advance).

Not here: the content of DICOM files (`headers`, `extraction`), and the inventory as a table (`stages.crawl`).
"""

from dicom_etl.settings import DatasetSettings
from dicom_etl.sources.base import Entry, Scan, Source, SourceError
from dicom_etl.sources.filelist import FileListSource
from dicom_etl.sources.tree import TreeSource

KINDS: dict[str, type[Source]] = {"list": FileListSource, "tree": TreeSource}

__all__ = ["KINDS", "Entry", "FileListSource", "Scan", "Source", "SourceError", "TreeSource", "open_source"]


def open_source(dataset: str, settings: DatasetSettings) -> Source:
    """The source of a dataset.

    Raises:
        SourceError: its root does not exist; one sentence.
    """
    return KINDS[settings.kind].from_settings(dataset, settings)
