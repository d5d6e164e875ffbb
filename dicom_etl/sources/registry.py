"""Which datasets there are: registered in the settings, found below watched folders, or named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.schemas import INVENTORY
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings, SettingsError
from dicom_etl.sources import SourceError, open_source


def find_datasets(settings: Settings) -> dict[str, DatasetSettings]:
    """The registered datasets, and every folder below a watched one.

    Raises:
        SettingsError: two roots of one name.
    """
    known = dict(settings.datasets)
    for watched in settings.watch_folders:
        for folder in _folders(Path(watched)):
            here = DatasetSettings(root=str(folder))
            if folder.name in known and Path(known[folder.name].root) != folder:
                raise SettingsError(
                    f"two datasets are named {folder.name}: {known[folder.name].root} and {folder}; rename one"
                )
            known.setdefault(folder.name, here)
    return dict(sorted(known.items()))


def _folders(watched: Path) -> list[Path]:
    try:
        return sorted(p for p in watched.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise SettingsError(f"the watched folder {watched} cannot be listed: {error.strerror}") from None


def select_datasets(settings: Settings, lake: Lake, named: Sequence[str]) -> dict[str, DatasetSettings]:
    """The datasets that `named` means, each a registered NAME, a PATH or NAME=PATH; all known ones if it is empty.

    Raises:
        SettingsError: a name that nothing has, or that two roots would share.
        SourceError: a path that is not there.
    """
    known = find_datasets(settings)
    if not named:
        if not known:
            raise SettingsError("no dataset is named and none is registered: give a folder, or NAME=FOLDER")
        return known
    chosen: dict[str, DatasetSettings] = {}
    for text in named:
        name, dataset = _one(text, known, lake)
        if name in chosen and chosen[name].root != dataset.root:
            raise SettingsError(f"two datasets are named {name}: {chosen[name].root} and {dataset.root}")
        chosen[name] = dataset
        open_source(name, dataset)
    return chosen


def _one(text: str, known: dict[str, DatasetSettings], lake: Lake) -> tuple[str, DatasetSettings]:
    if text in known:
        return text, known[text]
    name, equals, path = text.partition("=")
    if equals and Path(text).expanduser().exists():  # a folder's own path may contain the sign
        equals = ""
    root = Path(path if equals else text).expanduser().resolve()
    if not equals:
        name = root.stem if root.suffix == ".csv" else root.name
        if not root.exists():
            names = f"; registered are {', '.join(known)}" if known else ""
            raise SourceError(f"{text} is no folder and no registered dataset{names}")
    if not name:
        raise SettingsError(f"{text}: give the dataset a name, as in NAME={root}")
    if name in known:
        if Path(known[name].root) == root:
            return name, known[name]
        raise SettingsError(f"{name} is registered for {known[name].root}: give {root} another name, NAME=PATH")
    dataset = DatasetSettings(root=str(root), kind="list" if root.suffix == ".csv" else "tree")
    location = open_source(name, dataset).location
    if not equals and lake.fingerprint(INVENTORY, dataset=name) not in (None, fingerprint(location)):
        raise SettingsError(
            f"the lake has a dataset {name} from another folder: give this one a name of its own, as in NEW={root}, "
            f"or say {name}={root} if it has moved"
        )
    return name, dataset
