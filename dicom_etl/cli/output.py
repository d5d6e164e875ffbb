"""What a person sees while and after a command runs: progress, tables, sentences. All text from data is defused."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_SECONDS_BETWEEN_LINES = 5.0


def to_printable(value: object) -> str:
    """A value as text that cannot steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers to the right."""
    rows = list(rows)
    shown = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for position, column in enumerate(columns):
        number = all(isinstance(row[position], int) for row in rows) and bool(rows)
        shown.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(f"{v:,}" if isinstance(v, int) else to_printable("" if v is None else v)) for v in row))
    console.print(shown)


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """Progress with rate and remaining time on a terminal, a to_printable line now and then elsewhere."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` of `what` is done."""
        if self._quiet:
            return
        now = time.monotonic()
        rate = done / max(now - self._started.setdefault(what, now), 1e-3)
        text = f"{rate:,.0f}/s" if now > self._started[what] else ""
        if self._console.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(to_printable(what), total=total, rate="")
            self._bars.update(self._tasks[what], completed=done, total=total, rate=text)
        elif done >= total or now - self._last.get(what, 0.0) > _SECONDS_BETWEEN_LINES:
            self._last[what] = now
            self._console.print(Text(f"{to_printable(what)}: {done:,} of {total:,} {text}".rstrip()))
