"""The example datasets that `dicom-etl example FOLDER` writes: two small SPARC datasets that share one patient.

`data/` says what the datasets contain: patients, studies and series (`images.toml`), SDS sheets, and what real trees
contain besides (`irregularities.toml`). `writer` turns that into files. Only the command, the demo and tests that need
a realistic dataset use this package; nothing here reads a dataset.
"""

from dicom_etl.examples.writer import ExampleTree, write_examples

__all__ = ["ExampleTree", "write_examples"]
