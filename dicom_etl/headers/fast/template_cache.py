"""Which templates are kept: several for each series, and several for each scanner model.

The number that is kept is bounded, and so is the number that is tried on a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dicom_etl.headers.fast.file_content import FileContent
from dicom_etl.headers.fast.parsed_header import ParsedHeader
from dicom_etl.headers.fast.parser import Parser
from dicom_etl.headers.fast.template import Template
from dicom_etl.headers.row import Row

# A match saves about as much time as trying sixteen templates that do not match.
_SAVED_BY_MATCH = 16
_MAX_CREDIT = 8 * _SAVED_BY_MATCH


@dataclass
class TemplateGroup:
    """The templates of a series or of a scanner model, the most recently used first."""

    max_templates: int
    templates: list[Template] = field(default_factory=list)
    files_offered: int = 0  # files of a series that were offered to the templates of their scanner model
    kept_in_vain: int = 0  # templates that were kept since one of them last matched a file
    credit: int = _MAX_CREDIT  # templates that may be tried without a match

    def match(self, buf: bytes, at_end: bool, content: FileContent) -> tuple[Template, Row] | None:
        """The first template that matches a file, and the row of the file.

        If few files match, it is not worth trying more than one template.
        """
        candidates = self.templates if self.credit > 0 else self.templates[:1]
        for number, template in enumerate(candidates):
            if row := template.match(buf, at_end, content):
                self._use(number, template)
                self.credit = min(self.credit + _SAVED_BY_MATCH, _MAX_CREDIT)
                return template, row
        self.credit = max(self.credit - len(candidates), 0)
        return None

    def _use(self, number: int, template: Template) -> None:
        """Move a template to the front."""
        if number:
            self.templates.insert(0, self.templates.pop(number))
        if not template.has_matched:
            template.has_matched, self.kept_in_vain = True, 0

    def learn(self, buf: bytes, parser: Parser, *, share_varying: bool = False) -> Template | None:
        """Extend the first template with the same elements, so that it matches a header; None if there is none.

        Args:
            buf: the bytes of the header.
            parser: that has parsed them.
            share_varying: elements that vary in one of the templates may vary in the extended one, too.
        """
        varying = self.varying_tags() if share_varying else frozenset[int]()
        for number, template in enumerate(self.templates):
            if not template.header.has_same_elements(buf, parser):
                continue
            if extended := template.extend(buf, parser, varying):
                self.templates[number] = extended
                self._use(number, extended)
                return extended
        return None

    def keep(self, header: ParsedHeader) -> Template | None:
        """Keep a header as a template, in which may vary what varies in others; None if it is not worth it.

        As long as files have nothing in common, fewer and fewer of them are kept.
        """
        self.kept_in_vain += 1
        is_power_of_two = not self.kept_in_vain & (self.kept_in_vain - 1)
        if self.kept_in_vain > self.max_templates and not is_power_of_two:
            return None
        template = Template(header, self.varying_tags().intersection(header.tags))
        self.templates.insert(0, template)
        del self.templates[self.max_templates :]
        return template

    def varying_tags(self) -> frozenset[int]:
        """The tags that vary in any of the templates."""
        return frozenset[int]().union(*(template.varying for template in self.templates))


class TemplateCache:
    """Groups of templates by key, as many as were used last."""

    def __init__(self, max_groups: int, max_templates: int) -> None:
        """Keep at most `max_groups` groups, of at most `max_templates` templates each."""
        self._max_groups, self._max_templates = max_groups, max_templates
        self._groups: dict[bytes | None, TemplateGroup] = {}

    def group(self, key: bytes | None) -> TemplateGroup:
        """The group of a key, which is now the most recently used one."""
        group = self._groups.pop(key, None) or TemplateGroup(self._max_templates)
        self._groups[key] = group
        if len(self._groups) > self._max_groups:
            del self._groups[next(iter(self._groups))]
        return group
