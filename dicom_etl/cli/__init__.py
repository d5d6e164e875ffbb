"""The command `dicom-etl`: reads options, calls the pipeline and shows the results.

Each module but four is named after the subcommand it holds: `run` (and `audit`), `stages` (one per stage), `convert`,
`status`, `uploads`, `explain`, `completeness`, `findings`, `verify`, `doctor`, `example`. Shared by them: `options`,
`session` (settings, lake and console of a command), `output`, `export`, `execution`, `results`. `app` lists the
subcommands.

Exit codes: 0 done (with or without findings), 1 some units failed, were held or rejected, 2 wrong usage or nothing to
do, 3 the server could not be reached, everything else done, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

from dicom_etl.cli.app import app, main

__all__ = ["app", "main"]
