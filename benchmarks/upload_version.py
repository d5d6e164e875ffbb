"""One turn of the upload of one version of the project, which PYTHONPATH names; prints a line of JSON.

    PYTHONPATH=CHECKOUT python benchmarks/upload_version.py URL STUDIES SERVER_PID

`benchmarks.upload --against CHECKOUT` runs it for two versions in turn, against the same server. It uses only what
versions have in common: `benchmarks.upload.Load.new` and `ours`. The first load of a process is a warm-up.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.upload import Load, _cpu_of, ours, ours_again
from dicom_etl.settings import FhirSettings, Settings

_WARM = 20


def main() -> None:
    """Upload, and upload again with nothing changed."""
    url, studies, server = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = Settings(fhir=FhirSettings())
    with tempfile.TemporaryDirectory(prefix="bench-upload-") as folder:
        ours(url, Load.new(Path(folder, "warm"), _WARM, settings))
        load = Load.new(Path(folder, "load"), studies, settings)
        figures = {}
        for name, run in (("upload", ours), ("again", ours_again)):
            start, client, before = time.perf_counter(), time.process_time(), _cpu_of(server)
            run(url, load)
            figures[name] = (
                time.perf_counter() - start,
                time.process_time() - client,
                _cpu_of(server) - before,
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
