"""The datasets: those registered in the settings, the folders below watched ones, and those of the command line.

Not here: the files of a dataset (`tree`, `filelist`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import INVENTORY
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings, SettingsError
from dicom_etl.sources import SourceError, open_source


def find_datasets(settings: Settings) -> dict[str, DatasetSettings]:
    """The registered datasets and every folder below a watched one, by name.

    Raises:
        SettingsError: two roots have the same name, or a watched folder cannot be listed.
    """
    datasets = dict(settings.datasets)
    for watched in settings.watch_folders:
        for folder in _list_folders(Path(watched)):
            registered = datasets.setdefault(folder.name, DatasetSettings(root=str(folder)))
            if Path(registered.root) != folder:
                raise SettingsError(
                    f"two datasets are named {folder.name}: {registered.root} and {folder}; rename one of the folders, "
                    "or register one under another name in [datasets]"
                )
    return dict(sorted(datasets.items()))


def _list_folders(watched: Path) -> list[Path]:
    try:
        return sorted(p for p in watched.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise SettingsError(f"the watched folder {watched} cannot be listed: {error.strerror}") from None


def select_datasets(settings: Settings, lake: Lake, arguments: Sequence[str]) -> dict[str, DatasetSettings]:
    """The datasets of the command line, by name; all that `find_datasets` finds if there is no argument.

    Args:
        settings: with the registered datasets.
        lake: asked whether it has a dataset of the same name from another folder.
        arguments: each a registered NAME, a PATH or NAME=PATH.

    Raises:
        SettingsError: a dataset has no name, or shares its name with another root.
        SourceError: a path does not exist.
    """
    datasets = find_datasets(settings)
    if not arguments:
        if not datasets:
            raise SettingsError("no dataset is named and none is registered: name a folder, or NAME=FOLDER")
        return datasets
    selected: dict[str, DatasetSettings] = {}
    for argument in arguments:
        name, dataset = _parse_argument(argument, datasets, lake)
        if name in selected and selected[name].root != dataset.root:
            raise SettingsError(
                f"two datasets are named {name}: {selected[name].root} and {dataset.root}; "
                f"name one of them, as in NEW={dataset.root}"
            )
        selected[name] = dataset
        open_source(name, dataset)
    return selected


def _parse_argument(argument: str, datasets: dict[str, DatasetSettings], lake: Lake) -> tuple[str, DatasetSettings]:
    if argument in datasets:
        return argument, datasets[argument]
    name, equals, path = argument.partition("=")
    if equals and Path(argument).expanduser().exists():  # the path of a folder may contain the sign
        equals = ""
    root = Path(path if equals else argument).expanduser().resolve()
    if not equals:
        name = root.stem if root.suffix == ".csv" else root.name
        if not root.exists():
            names = f"; registered: {', '.join(datasets)}" if datasets else ""
            raise SourceError(f"{argument} is neither a folder nor a registered dataset{names}")
    if not name:
        raise SettingsError(f"{argument}: give the dataset a name, as in NAME={root}")
    if name in datasets:
        if Path(datasets[name].root) == root:
            return name, datasets[name]
        raise SettingsError(
            f"dataset {name} is registered with the root {datasets[name].root}: "
            f"give {root} another name, as in NEW={root}"
        )
    dataset = DatasetSettings(root=str(root), kind="list" if root.suffix == ".csv" else "tree")
    location = open_source(name, dataset).location
    if not equals and lake.read_fingerprint(INVENTORY, dataset=name) not in (None, compute_fingerprint(location)):
        raise SettingsError(
            f"the lake has a dataset {name} from another folder: give this one another name, as in NEW={root}, "
            f"or confirm with {name}={root} that the dataset has moved"
        )
    return name, dataset
