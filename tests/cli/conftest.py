"""A small dataset for the tests of the command."""

from pathlib import Path

import pytest

from tests.support.datasets import write_instance


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Dataset `ds`: two subjects with a study of two instances each."""
    for subject in (1, 2):
        for number in (1, 2):
            write_instance(
                tmp_path / f"ds/primary/sub-{subject}/sam-1/{number}.dcm",
                study=str(subject),
                series=str(subject),
                PatientID=f"P-{subject}",
            )
    return tmp_path / "ds"
