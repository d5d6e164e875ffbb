"""Tables and progress: text of the data cannot control a terminal; without a terminal, progress is plain lines."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from dicom_etl.cli.output import ProgressDisplay, print_table, to_printable


def written(*, terminal: bool = False, width: int = 200) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestText:
    @pytest.mark.parametrize(
        "hostile",
        [
            "\x1b[2J",  # clears the screen
            "\x1b]0;title\x07",  # renames the window
            "\x1b]52;c;Zm9v\x07",  # writes the clipboard
            "\x9b31m",  # the same as ESC [ in one character
            "a\rb",
            "a\nb",
            "a\x08b",
            "\x00",
            "\x7f",
            "\u202egpj.exe",  # turns the direction of writing
            "\u200b",
            "\ud800",
        ],
    )
    def test_a_control_character_is_replaced(self, hostile: str) -> None:
        assert "\N{REPLACEMENT CHARACTER}" in to_printable(hostile)
        assert to_printable(hostile).isprintable()

    @pytest.mark.parametrize("name", ["Müller^Grete", "山田^太郎", "홍^길동", "a b", "50 %", "[bold]"])
    def test_printable_text_is_unchanged(self, name: str) -> None:
        assert to_printable(name) == name

    def test_other_values_become_text(self) -> None:
        assert to_printable(3.5) == "3.5"


class TestTable:
    def test_control_characters_in_cells_are_replaced(self) -> None:
        console = written()
        print_table(console, "Units", ["unit"], [["sub\x1b[31m-1"]])
        assert "\x1b" not in text_of(console)
        assert "sub\N{REPLACEMENT CHARACTER}[31m-1" in text_of(console)

    def test_a_cell_is_not_markup(self) -> None:
        console = written()
        print_table(console, "Units", ["unit"], [["[link=file:///etc/passwd]x[/link]"]])
        assert "[link=file:///etc/passwd]x[/link]" in text_of(console)

    def test_numbers_have_separators_and_none_is_blank(self) -> None:
        console = written()
        print_table(console, "Units", ["files", "note"], [[1234567, None]])
        assert "1,234,567" in text_of(console)
        assert "None" not in text_of(console)

    def test_a_boolean_is_yes_or_no(self) -> None:
        console = written()
        print_table(console, "measure", ["updated", "empty"], [[True, False]])
        assert text_of(console).splitlines()[-2].split() == ["│", "yes", "│", "no", "│"]

    def test_no_word_of_a_header_is_divided(self) -> None:
        console = written(width=60)
        print_table(console, "extract", ["dataset", "units processed", "units failed"], [["x" * 100, 1, 0]])
        assert "processed" in text_of(console)
        assert "dataset" in text_of(console)

    def test_a_table_that_fits_with_headers_of_several_lines_is_whole(self) -> None:
        console = written(width=80)
        columns = "dataset,units,units processed,units failed,patients,studies,held,findings".split(",")
        print_table(console, "build", columns, [["breast", 4, 4, 0, 4, 8, 0, 16]])
        assert [line[-1] for line in text_of(console).splitlines()[1:]] == list("┓┃┃┩│┘")

    def test_a_table_may_have_no_rows(self) -> None:
        console = written()
        print_table(console, "Units", ["unit"], [])
        assert "unit" in text_of(console)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that `time.monotonic` tells, in its first place."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def lines(console: Console) -> list[str]:
    return text_of(console).splitlines()


class TestProgress:
    def test_without_a_terminal_there_is_a_line_every_few_seconds(self, clock: list[float]) -> None:
        console = written()
        with ProgressDisplay(console) as show:
            for done in range(1, 11):
                show("extract breast", done, 20)
                clock[0] += 1.0
        assert lines(console) == ["extract breast: 1 of 20", "extract breast: 7 of 20 1/s"]

    def test_without_a_terminal_the_end_is_always_printed(self, clock: list[float]) -> None:
        console = written()
        with ProgressDisplay(console) as show:
            show("extract breast", 1, 2000)
            clock[0] += 2.0
            show("extract breast", 2000, 2000)
        assert lines(console) == ["extract breast: 1 of 2,000", "extract breast: 2,000 of 2,000 1,000/s"]

    def test_lines_contain_no_control_characters(self, clock: list[float]) -> None:
        console = written()
        with ProgressDisplay(console) as show:
            show("extract \x1b[2J", 1, 1)
        assert lines(console) == ["extract \N{REPLACEMENT CHARACTER}[2J: 1 of 1"]

    def test_a_dataset_name_in_a_line_is_not_markup(self, clock: list[float]) -> None:
        console = written()
        with ProgressDisplay(console) as show:
            show("extract [red]ds[/red]", 1, 1)
        assert lines(console) == ["extract [red]ds[/red]: 1 of 1"]

    def test_a_bar_shows_a_hostile_name_as_text(self) -> None:
        console = written(terminal=True)
        with ProgressDisplay(console) as show:
            show("extract \x1b]0;x\x07[link=http://x]ds", 1, 1)
        assert "\x1b]" not in text_of(console)
        assert "[link=http://x]ds" in text_of(console)

    def test_quiet_progress_prints_nothing(self) -> None:
        console = written(terminal=True)
        with ProgressDisplay(console, quiet=True) as show:
            show("extract breast", 1, 1)
        assert text_of(console) == ""
