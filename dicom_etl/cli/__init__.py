"""The command `dicom-etl`: reads options, calls the pipeline and shows the results.

Most modules are named after the subcommand that they contain: `run` (and `audit`), `stages` (one per stage), `convert`,
`status`, `uploads`, `explain`, `completeness`, `findings`, `withdraw`, `verify`, `doctor`, `example`. They share
`options`, `session` (settings, lake and console of a command), `output`, `export`, `execution` and `results`. `app` is
the list of subcommands.

Exit codes: 0 done (with or without findings), 1 some units failed, were held or rejected, 2 wrong usage or nothing to
do, 3 the server could not be reached, everything else done, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

from dicom_etl.cli.app import app, main

__all__ = ["app", "main"]
