"""Writes the parts of the documentation that follow from data: commands, settings, tables, tags, mapping, findings.

Each is between two markers; the rest of a page is written by hand. `--check` reports pages that are out of date and
changes nothing.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402
from typer.main import get_command  # noqa: E402

from dicom_etl import renames  # noqa: E402
from dicom_etl.cli.app import app  # noqa: E402
from dicom_etl.fhir.mapping import MappingLine, read_mapping  # noqa: E402
from dicom_etl.findings import finding_codes  # noqa: E402
from dicom_etl.headers.catalogue import catalogue  # noqa: E402
from dicom_etl.lake.schemas import list_tables  # noqa: E402
from dicom_etl.quality.check_table import quality_checks  # noqa: E402
from dicom_etl.settings import describe_settings  # noqa: E402

# The folders of the lake in the order of the pipeline: a reader looks for the header table first, for commits last.
_FOLDERS = (
    "inventory",
    "sheets",
    "headers",
    "tag_profiles",
    "files",
    "identities",
    "fhir_elements",
    "findings",
    "quality",
    "upload_ledger",
    "withdrawn",
    "commits",
)


def rows(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [list(header), ["---"] * len(header), *([str(c).replace("|", "\\|") for c in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def schema_tables() -> str:
    """A section for each table of the lake; the tags of the header table have a page of their own."""
    sections = []
    for table in sorted(list_tables(), key=lambda table: _FOLDERS.index(table.path_template.partition("/")[0])):
        tags = {column.name for column in catalogue()} if table.name == "headers" else set()
        columns = [(f"`{c.name}`", str(c.type), c.description) for c in table.columns if c.name not in tags]
        note = "\n\nAnd one column for each of the [tags](tags.md)." if tags else ""
        path = table.path_template.replace("{", "<").replace("}", ">")
        text = f"{table.description} Sorted by {', '.join(table.order)}."
        sections.append(f"## `{path}`\n\n{text}\n\n{rows(('column', 'type', 'description'), columns)}{note}")
    return "\n\n".join(sections)


def finding_table() -> str:
    """All codes."""
    return rows(
        ("code", "severity", "stage", "meaning", "what to do"),
        [(f"`{c.code}`", c.severity, c.stage, c.meaning, c.action) for c in finding_codes().values()],
    )


def quality_check_table() -> str:
    """All quality checks, and the numbers that are not checked."""
    header = ("check", "title", "counted", "warns below", "fails below")
    return rows(
        header,
        [
            (f"`{c.check}`", c.title, c.counted, *(f"{t:.0%}" if t else "" for t in (c.warn_below, c.fail_below)))
            for c in quality_checks().values()
        ],
    )


def catalogue_table() -> str:
    """All columns of the header table that come from tags."""
    return rows(
        ("column", "tag", "VR", "type", "level", "purpose"),
        [
            (
                f"`{c.name}`",
                " > ".join(f"({t >> 16:04X},{t & 0xFFFF:04X})" for t in c.path),
                c.vr,
                c.kind,
                c.level,
                c.used_for,
            )
            for c in catalogue()
        ],
    )


def mapping_table() -> str:
    """What is made, element by element."""
    made = [line for line in read_mapping() if line.rule]
    header = ("element", "R4", "R5", "made from", "rule", "where the tag is absent or empty", "where it is not valid")
    return rows(header, [(*_named(line), line.how, line.absent, line.invalid) for line in made])


def left_out_table() -> str:
    """What could be made and is not, and why."""
    left = [line for line in read_mapping() if not line.rule]
    cells = [(_path(line), ", ".join(line.columns), line.how.removeprefix("omitted: ")) for line in left]
    return rows(("element", "tags", "why"), cells)


def _named(line: MappingLine) -> tuple[str, ...]:
    return _path(line), line.r4_type or "-", _in_r5(line), ", ".join(line.columns)


def _path(line: MappingLine) -> str:
    level = {"series": "series.", "instance": "series.instance."}.get(line.level, "")
    return f"{line.resource}.{level}{line.r4 or line.r5}"


def _in_r5(line: MappingLine) -> str:
    if not line.r5:
        return "-"
    return line.r5_type if line.r5 == line.r4 else f"{line.r5}: {line.r5_type}"


def settings_table() -> str:
    """All settings."""
    return rows(
        ("setting", "default", "meaning"), [(f"`{n}`", f"`{d}`" if d else "", m) for n, d, m in describe_settings()]
    )


def command_sections() -> str:
    """A section for each subcommand, with its help."""
    group = get_command(app)
    sections = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        context = click.Context(command, info_name=f"dicom-etl {name}")
        usage = " ".join(["dicom-etl", name, *command.collect_usage_pieces(context)])
        options = [record for parameter in command.params if (record := parameter.get_help_record(context))]
        cells = [(f"`{option}`", " ".join(text.split())) for option, text in options]
        help_text = inspect.cleandoc(command.help or "")
        sections.append(f"## {name}\n\n{help_text}\n\n    {usage}\n\n{rows(('option', 'meaning'), cells)}")
    return "\n\n".join(sections)


def renamed_table() -> str:
    """All names that earlier versions had."""
    kinds = {
        "setting": renames.SETTINGS,
        "option": renames.OPTIONS,
        "command": renames.COMMANDS,
        "upload state": renames.UPLOAD_STATES,
        "finding code": renames.FINDING_CODES,
        **{f"column of {table}": columns for table, columns in renames.COLUMNS.items()},
    }
    lines = [(kind, f"`{old}`", f"`{new}`") for kind, names in kinds.items() for old, new in names.items()]
    return rows(("kind", "old name", "new name"), lines)


TABLES = {
    "CHANGELOG.md": {"renamed": renamed_table},
    "docs/reference/commands.md": {"commands": command_sections},
    "docs/reference/tables.md": {"schemas": schema_tables},
    "docs/reference/tags.md": {"catalogue": catalogue_table},
    "docs/reference/mapping.md": {"mapping": mapping_table, "left-out": left_out_table},
    "docs/reference/findings.md": {"findings": finding_table},
    "docs/reference/quality-checks.md": {"quality-checks": quality_check_table},
    "docs/reference/settings.md": {"settings": settings_table},
}


def filled(text: str, name: str, table: str) -> str:
    """A page with the table between its markers."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the marker <!-- {name} --> is missing")
    return pattern.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def main(check: bool) -> int:
    """Fill the pages, or say which are out of date."""
    stale = []
    for page, tables in TABLES.items():
        path = ROOT / page
        text = new = path.read_text(encoding="utf-8")
        for name, make in tables.items():
            new = filled(new, name, make())
        if new != text:
            stale.append(page)
            if not check:
                path.write_text(new, encoding="utf-8")
    print("\n".join(f"{'out of date' if check else 'written'}: {page}" for page in stale) or "up to date")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
