"""`dicom-etl status`: how much of each dataset is loaded, held and failed."""

from __future__ import annotations

import json
from dataclasses import asdict

from dicom_etl.cli.options import Json, LakeRoot, SettingsFile
from dicom_etl.cli.output import print_table
from dicom_etl.cli.session import Session


def status(settings: SettingsFile = None, lake: LakeRoot = None, as_json: Json = False) -> None:
    """Show what is loaded, held and failed, by dataset."""
    session = Session(as_json, settings, lake)
    opened_lake = session.open_lake()
    from dicom_etl.inspection.status import read_status  # once there is a lake: it loads what reads tables

    datasets = read_status(opened_lake)
    if as_json:
        print(json.dumps([asdict(dataset) for dataset in datasets]))
    elif not datasets:
        session.notify(f"the lake {session.settings.lake} is empty: run `dicom-etl run`")
    else:
        columns = [name for name in asdict(datasets[0]) if name != "uploads"]
        rows = [[getattr(dataset, column) for column in columns] for dataset in datasets]
        print_table(session.console, session.settings.lake, columns, rows)
        uploads = [(dataset.dataset, *upload) for dataset in datasets for upload in dataset.uploads]
        if uploads:
            print_table(session.console, "Uploads", ["dataset", "server", "state", "resources"], uploads)
