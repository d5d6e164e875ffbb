"""Output for a person: tables, progress and messages, without characters that could control the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 5.0


def to_printable(value: object) -> str:
    """The text of a value, without characters that could control a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def count_noun(count: int, noun: str) -> str:
    """A number with its noun in the singular or plural: `1 error`, `1,200 errors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; columns of numbers are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for position, column in enumerate(columns):
        is_number = all(isinstance(row[position], int) and not isinstance(row[position], bool) for row in rows)
        table.add_column(
            column,
            justify="right" if is_number and rows else "left",
            overflow="fold",
            min_width=max(map(len, column.split()), default=0),  # else a word of the header could be divided
        )
    for row in rows:
        table.add_row(*(Text(_format_cell(value)) for value in row))
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum > console.width:
        for table_column in table.columns:
            table_column.header = str(table_column.header).replace(" ", "\n")
    console.print(table)


def _format_cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else to_printable(value)


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """Progress bars with rate and remaining time on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
        """Show that `done` of `total` items of the work `what` are done."""
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
            from rich.text import Text

            self._console.print(Text(f"{to_printable(what)}: {done:,} of {total:,} {text}".rstrip()))
