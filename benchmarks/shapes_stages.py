"""One run of all stages but the upload over a dataset, for `shapes.py`: what each stage used, as JSON.

    python -m benchmarks.shapes_stages FOLDER LAKE WORKERS

It is a process of its own, so that its processor time and memory are those of the run, and of nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.usage import ChildMemory, Usage, peak_memory
from dicom_etl.pipeline import STAGES, Pipeline, run
from dicom_etl.settings import DatasetSettings, Settings

MEASURED = tuple(stage for stage in STAGES if stage != "upload")


def main(folder: str, lake: str, workers: str) -> None:
    """Run the stages one after the other and print what they used."""
    name = Path(folder).name
    settings = Settings(lake=lake, engine="processes", workers=int(workers))
    dataset = DatasetSettings(root=folder, time_zone="Europe/Berlin")
    pipeline = Pipeline(settings, {name: dataset}, notify=lambda text: print(text, file=sys.stderr))
    stages, opened = {}, 0
    with ChildMemory().watched() as workers_memory:
        for stage in MEASURED:
            before = Usage.now()
            outcome = run(pipeline, [name], [stage])
            stages[stage] = Usage.now().since(before)
            if outcome.exit_code:
                raise SystemExit(f"{stage} of {folder} has not done all: {outcome}")
            if stage == "extract":
                opened = outcome.summaries[name][stage].files_opened
    result = {
        "stages": stages,
        "cpu": Usage.now().cpu,
        "opened": opened,
        "parent_memory": peak_memory(),
        "worker_memory": workers_memory.largest,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
