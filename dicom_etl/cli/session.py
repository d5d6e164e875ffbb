"""What every command needs: its settings, the lake, the datasets that are meant, and a way to tell a person."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from dicom_etl.cli.output import to_printable
from dicom_etl.inspection.status import list_datasets
from dicom_etl.lake.schemas import ALL_FINDINGS
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings, SettingsError, load_settings
from dicom_etl.sources.registry import select_datasets


class Session:
    """Settings with the options of a command laid over them, and a console; with JSON it is standard error."""

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
        self.console = Console(highlight=False, stderr=as_json, soft_wrap=False)
        self.settings: Settings = load_settings(
            settings_file,
            lake=lake,
            workers=workers,
            engine=engine,
            fhir={"url": fhir_url},
            lock_wait_seconds=0.0 if no_wait else None,
        )

    def tell(self, sentence: str) -> None:
        """A sentence for the person."""
        self.console.print(to_printable(sentence), markup=False)

    def stopped(self, error: Exception, exit_code: int) -> int:
        """Say why a command ended before its end; returns its exit code."""
        if self.as_json:
            print(json.dumps({"exit_code": exit_code, "stopped": str(error)}))
        else:
            self.tell(str(error))
        return exit_code

    def lake(self) -> Lake:
        """The lake, opened to be written."""
        lake = Lake(self.settings.lake, self.settings.lock_wait_seconds, self.tell, self.settings.database)
        return lake.open(rebuild=self.rebuild, id_key=self.settings.resource_ids().key_fingerprint)

    def existing(self) -> Lake:
        """The lake, which must be there."""
        lake = Lake(self.settings.lake, ledger_url=self.settings.database)
        if not lake.exists("lake.json"):
            raise SettingsError(f"there is no lake at {self.settings.lake}; name it with --lake, or run first")
        return lake.open()

    def measured_lake(self, dataset: str) -> Lake:
        """The lake, in which the dataset must have been measured."""
        lake = self.existing()
        names = list_datasets(lake)
        if dataset not in names:
            raise SettingsError(f"the lake has no dataset {dataset}; it has {', '.join(names) or 'none'}")
        if lake.fingerprint(ALL_FINDINGS, dataset=dataset) is None:
            raise SettingsError(f"dataset {dataset} has not been measured: run `dicom-etl measure {dataset}` first")
        return lake

    def in_lake(self, named: list[str] | None) -> list[str]:
        """The datasets of the lake that are named, by name or folder; all of them if none is."""
        lake = self.existing()
        there = list_datasets(lake)
        if not named:
            return there
        names = [[text] if text in there else select_datasets(self.settings, lake, [text]) for text in named]
        return list(dict.fromkeys(name for some in names for name in some))
