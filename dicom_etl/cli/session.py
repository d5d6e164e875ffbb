"""The session of a command: its settings, its lake, the datasets that were named, and a console for messages."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_etl.cli.output import to_printable
from dicom_etl.lake.location import has_lake
from dicom_etl.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from dicom_etl.lake.tables import Lake


class Session:
    """The settings, overridden by the options of a command; and a console: standard error where there is JSON."""

    def __init__(
        self,
        as_json: bool,
        settings_file: Path | None,
        lake: str | None,
        *,
        fhir_url: str | None = None,
        workers: int | None = None,
        engine: str | None = None,
        no_wait: bool = False,
        rebuild: bool = False,
    ) -> None:
        self.as_json = as_json
        self.rebuild = rebuild
        self.settings: Settings = load_settings(
            settings_file,
            lake=lake,
            workers=workers,
            engine=engine,
            fhir={"url": fhir_url},
            lock_wait_seconds=0.0 if no_wait else None,
        )

    @cached_property
    def console(self) -> Console:
        """The console for tables and messages."""
        from rich.console import Console

        return Console(highlight=False, emoji=False, stderr=self.as_json, soft_wrap=False)

    def notify(self, message: str) -> None:
        """Print a message."""
        self.console.print(to_printable(message), markup=False)

    def stop(self, error: Exception, exit_code: int) -> int:
        """Print why a command ended early; returns its exit code."""
        if self.as_json:
            print(json.dumps({"exit_code": exit_code, "stopped": str(error)}))
        else:
            self.notify(str(error))
        return exit_code

    def create_lake(self) -> Lake:
        """The lake, opened for writing; it is created if it does not exist."""
        from dicom_etl.lake.tables import Lake

        lake = Lake(self.settings.lake, self.settings.lock_wait_seconds, self.notify, self.settings.database)
        return lake.open(rebuild=self.rebuild, id_key=self.settings.resource_ids().key_fingerprint)

    def open_lake(self) -> Lake:
        """The lake, opened for reading.

        Raises:
            SettingsError: it does not exist.
        """
        if not has_lake(self.settings.lake):
            root = self.settings.lake
            raise SettingsError(f"there is no lake at {root}: name one with --lake, or create it with `dicom-etl run`")
        from dicom_etl.lake.tables import Lake

        return Lake(self.settings.lake, ledger_url=self.settings.database).open()

    def open_measured_lake(self, dataset: str) -> Lake:
        """The lake, opened for reading.

        Raises:
            SettingsError: it does not exist, or the dataset is not in it or has not been measured.
        """
        from dicom_etl.lake.schemas import ALL_FINDINGS

        lake = self.open_lake()
        names = lake.datasets()
        if dataset not in names:
            raise SettingsError(f"the lake has no dataset {dataset}; it has {', '.join(names) or 'none'}")
        if lake.read_fingerprint(ALL_FINDINGS, dataset=dataset) is None:
            raise SettingsError(f"dataset {dataset} has not been measured: run `dicom-etl measure {dataset}` first")
        return lake

    def find_datasets(self, named: list[str] | None) -> list[str]:
        """The names of the datasets of the lake that were named, by name or by folder; all of them if none was."""
        from dicom_etl.sources.registry import select_datasets

        lake = self.open_lake()
        existing = lake.datasets()
        if not named:
            return existing
        names = [[text] if text in existing else [*select_datasets(self.settings, lake, [text])] for text in named]
        return list(dict.fromkeys(name for matches in names for name in matches))
