"""Converts each subfolder with dicom2fhir, in the environment where it is installed: `peer_dicom2fhir.py FOLDER`.

Prints {"files": files converted, "seconds": time for them}. A folder that cannot be converted is not counted.
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

# with one instance for each file, as header tables have one row
_CONFIG = {"dicom_timezone": "Europe/Berlin", "generator": {"imaging_study": {"add_instances": True}}}


def main(folder: Path) -> None:
    """Convert each subfolder, and print the time."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    files, seconds = 0, 0.0
    with contextlib.redirect_stdout(sys.stderr):
        for study in sorted(folder.iterdir()):
            start = time.perf_counter()
            try:
                asyncio.run(dicom2fhir.from_directory(study, dict(_CONFIG)))
            except Exception:  # noqa: BLE001, S112  (whatever the error is, the folder is not converted)
                continue
            seconds += time.perf_counter() - start
            files += len(list(study.iterdir()))
    print(json.dumps({"files": files, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
