"""Converts study folders with dicom2fhir, in the environment where it is installed: `peer_studies.py STEPS FOLDER`.

STEPS are the steps that are measured:

    files     from files to the JSON text of the Bundle
    memory    from DICOM JSON of all files in memory to the JSON text of the Bundle
    objects   from DICOM JSON of all files in memory to the Bundle, a Python object

Prints {"instances": number in the ImagingStudies, "seconds": time for them, "cpu": CPU seconds}. The first study is
converted once before without being measured, so that imports and compilation are not counted.
"""

import asyncio
import contextlib
import json
import logging
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pydicom
from dicom2fhir import dicom2fhir

# with one instance for each file, as in this project
_CONFIG = {"dicom_timezone": "Europe/Berlin", "generator": {"imaging_study": {"add_instances": True}}}

Headers = list[dict[str, Any]]
Convert = Callable[[Path, Headers], Any]


def from_files(folder: Path, _: Headers) -> Any:
    """Convert a folder to a Bundle and its text."""
    bundle = asyncio.run(dicom2fhir.from_directory(folder, dict(_CONFIG)))
    bundle.model_dump_json()
    return bundle


def from_memory(_: Path, headers: Headers) -> Any:
    """Convert headers to a Bundle and its text."""
    bundle = from_objects(_, headers)
    bundle.model_dump_json()
    return bundle


def from_objects(_: Path, headers: Headers) -> Any:
    """Convert headers to a Bundle."""

    async def yield_headers() -> AsyncGenerator[dict[str, Any], None]:
        for header in headers:
            yield header

    return asyncio.run(dicom2fhir.from_generator(yield_headers(), dict(_CONFIG)))


_CONVERTERS: dict[str, Convert] = {"files": from_files, "memory": from_memory, "objects": from_objects}


def main(steps: str, folder: Path) -> None:
    """Convert each subfolder, and print the time."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    convert = _CONVERTERS[steps]
    studies = sorted(folder.iterdir())
    instances, seconds, cpu = 0, 0.0, 0.0
    with contextlib.redirect_stdout(sys.stderr):
        for number, study in enumerate([studies[0], *studies]):
            headers = _read_headers(study) if steps != "files" else []
            start, cpu_start = time.perf_counter(), time.process_time()
            bundle = convert(study, headers)
            if number:
                seconds += time.perf_counter() - start
                cpu += time.process_time() - cpu_start
                instances += _count_instances(bundle)
    print(json.dumps({"instances": instances, "seconds": seconds, "cpu": cpu}))


def _read_headers(folder: Path) -> Headers:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [pydicom.dcmread(path, stop_before_pixels=True).to_json_dict() for path in paths]


def _count_instances(bundle: Any) -> int:
    studies = [entry.resource for entry in bundle.entry if hasattr(entry.resource, "series")]
    return sum(len(series.instance) for study in studies for series in study.series)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
