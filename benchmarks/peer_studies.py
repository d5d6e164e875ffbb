"""Runs dicom2fhir over the study folders of a folder, in the environment that has it: `peer_studies.py WHAT FOLDER`.

WHAT is how far it goes, and from where:

    files     from files to the JSON text of its Bundle
    memory    from DICOM JSON of all files in memory to the JSON text of its Bundle
    objects   from DICOM JSON of all files in memory to its Bundle, a Python object

Prints {"instances": in the ImagingStudies that it made, "seconds": spent on them, "cpu": seconds of the processor}.
The first study is converted once before, unmeasured: what is loaded and compiled on the way is no work on a study.
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

# an instance of the series for every file, as ours have
_CONFIG = {"dicom_timezone": "Europe/Berlin", "generator": {"imaging_study": {"add_instances": True}}}

Headers = list[dict[str, Any]]
Convert = Callable[[Path, Headers], Any]


def from_files(folder: Path, _: Headers) -> Any:
    """The Bundle of a folder, and its text."""
    bundle = asyncio.run(dicom2fhir.from_directory(folder, dict(_CONFIG)))
    bundle.model_dump_json()
    return bundle


def from_memory(_: Path, headers: Headers) -> Any:
    """The Bundle of headers, and its text."""
    bundle = from_objects(_, headers)
    bundle.model_dump_json()
    return bundle


def from_objects(_: Path, headers: Headers) -> Any:
    """The Bundle of headers."""

    async def given() -> AsyncGenerator[dict[str, Any], None]:
        for header in headers:
            yield header

    return asyncio.run(dicom2fhir.from_generator(given(), dict(_CONFIG)))


_WAYS: dict[str, Convert] = {"files": from_files, "memory": from_memory, "objects": from_objects}


def main(what: str, folder: Path) -> None:
    """Convert each folder below `folder`, and say what it took."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    convert = _WAYS[what]
    studies = sorted(folder.iterdir())
    instances, seconds, cpu = 0, 0.0, 0.0
    with contextlib.redirect_stdout(sys.stderr):
        for number, study in enumerate([studies[0], *studies]):
            headers = _headers(study) if what != "files" else []
            start, cpu_start = time.perf_counter(), time.process_time()
            bundle = convert(study, headers)
            if number:
                seconds += time.perf_counter() - start
                cpu += time.process_time() - cpu_start
                instances += _instances(bundle)
    print(json.dumps({"instances": instances, "seconds": seconds, "cpu": cpu}))


def _headers(folder: Path) -> Headers:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [pydicom.dcmread(path, stop_before_pixels=True).to_json_dict() for path in paths]


def _instances(bundle: Any) -> int:
    studies = [entry.resource for entry in bundle.entry if hasattr(entry.resource, "series")]
    return sum(len(series.instance) for study in studies for series in study.series)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
