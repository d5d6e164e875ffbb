"""`dicom-etl status`: how much of each dataset is loaded, held and failed."""

from __future__ import annotations

import json
from dataclasses import asdict

from dicom_etl.cli.options import Json, LakeRoot, SettingsFile
from dicom_etl.cli.output import print_table
from dicom_etl.cli.session import Session
from dicom_etl.inspection.status import read_status


def status(settings: SettingsFile = None, lake: LakeRoot = None, as_json: Json = False) -> None:
    """Show what is loaded, held and failed, by dataset."""
    session = Session(as_json, settings, lake)
    rows = read_status(session.existing())
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    elif not rows:
        session.tell("the lake is empty")
    else:
        columns = [name for name in asdict(rows[0]) if name != "uploads"]
        print_table(session.console, session.settings.lake, columns, [[getattr(r, c) for c in columns] for r in rows])
        uploads = [(r.dataset, server, state, n) for r in rows for server, state, n in r.uploads]
        if uploads:
            print_table(session.console, "Uploads", ["dataset", "server", "state", "resources"], uploads)
