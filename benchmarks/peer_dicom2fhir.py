"""Runs dicom2fhir over the folders of a folder, in the environment that has it: `peer_dicom2fhir.py FOLDER`.

Prints {"files": converted, "seconds": spent on them}. A folder that it fails on counts for nothing.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
import warnings
from pathlib import Path

from dicom2fhir import dicom2fhir

# an instance of the series for every file, as our tables have a row
_CONFIG = {"dicom_timezone": "Europe/Berlin", "generator": {"imaging_study": {"add_instances": True}}}


def main(folder: Path) -> None:
    """Convert each folder below `folder`, and say what it took."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    files, seconds = 0, 0.0
    with contextlib.redirect_stdout(sys.stderr):
        for study in sorted(folder.iterdir()):
            start = time.perf_counter()
            try:
                asyncio.run(dicom2fhir.from_directory(study, dict(_CONFIG)))
            except Exception:  # noqa: BLE001, S112  (whatever it fails with, the folder is not converted)
                continue
            seconds += time.perf_counter() - start
            files += len(list(study.iterdir()))
    print(json.dumps({"files": files, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
