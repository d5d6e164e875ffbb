"""The command `dicom-etl`: one subcommand per stage, and those that run, audit, explain and check.

Only reads options, calls the pipeline and shows what came back. Exit codes: 0 done (findings or not), 1 some units
failed, were held or rejected, 2 wrong usage or nothing to do, 3 the server could not be reached, everything else done,
130 stopped by Ctrl-C.

`root` knows the modules of commands; these share `options` and `session`, and what stands on it: `showing`, `running`.
None knows what stands above it.
"""

from __future__ import annotations

from dicom_etl.cli.root import app, main

__all__ = ["app", "main"]
