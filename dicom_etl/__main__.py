"""The entry point, also of `python -m dicom_etl`: light, so that Ctrl-C has the same effect from the start."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_INTERRUPTED = 130  # as shells do: 128 and SIGINT; typer ends so without a message


class _PandasBlocker:
    """An import hook that makes pandas unavailable in the processes of the command.

    pyarrow imports pandas as soon as it makes an array from a list, to recognise data frames. No command makes data
    frames, and the import takes a quarter of a second and 46 MB, in each worker process too.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> None:  # noqa: ARG004
        if name == "pandas":
            raise ModuleNotFoundError("dicom-etl does not use pandas", name=name)


if "pandas" not in sys.modules:
    sys.meta_path.insert(0, _PandasBlocker)  # also in worker processes, which import this module


def main() -> None:
    """Run the command."""
    try:
        from dicom_etl.cli import main as command

        command()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != _INTERRUPTED:
            raise
        print("dicom-etl: stopped; finished work is kept, and the next run continues from there", file=sys.stderr)
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
