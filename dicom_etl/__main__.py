"""The entry point, also of `python -m dicom_etl`: light, so that Ctrl-C has one answer from the first moment on."""

from __future__ import annotations

import sys

_INTERRUPTED = 130  # as shells have it: 128 and SIGINT; typer ends so without a word


def main() -> None:
    """Run the command."""
    try:
        from dicom_etl.cli import main as command

        command()
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:
            raise
        print("dicom-etl: stopped; what is done is kept, the next run goes on from here", file=sys.stderr)
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
