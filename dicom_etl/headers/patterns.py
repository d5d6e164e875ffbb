"""Several patterns of which one may match a file: those of a series, or those of one kind of files.

How many are kept is bounded, and so is the number of those with which a file is compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dicom_etl.headers.content import Content
from dicom_etl.headers.parsed import Parsed
from dicom_etl.headers.pattern import Pattern
from dicom_etl.headers.row import Row
from dicom_etl.headers.walk import Walk

# A match saves about as much time as sixteen patterns take that do not match.
_SAVED = 16
_MOST_CREDIT = 8 * _SAVED


@dataclass
class Patterns:
    """Patterns, the most recently used first."""

    most: int
    kept: list[Pattern] = field(default_factory=list)
    files: int = 0  # that were offered to the patterns of others
    in_vain: int = 0  # patterns were kept, and since then none was like another
    credit: int = _MOST_CREDIT  # patterns that may still be tried in vain

    def match(self, buf: bytes, at_end: bool, content: Content) -> tuple[Pattern, Row] | None:
        """The first pattern that a file matches, which counts as used, and the row of the file.

        Where few files match, it is not worth trying more than one pattern.
        """
        tried = self.kept if self.credit > 0 else self.kept[:1]
        for number, pattern in enumerate(tried):
            if row := pattern.match(buf, at_end, content):
                self._use(number, pattern)
                self.credit = min(self.credit + _SAVED, _MOST_CREDIT)
                return pattern, row
        self.credit = max(self.credit - len(tried), 0)
        return None

    def _use(self, number: int, pattern: Pattern) -> None:
        if number:
            self.kept.insert(0, self.kept.pop(number))
        if not pattern.has_matched:
            pattern.has_matched, self.in_vain = True, 0

    def teach(self, buf: bytes, walked: Walk, *, together: bool = False) -> Pattern | None:
        """The pattern that has learnt to match a header; None if it is like none.

        Args:
            buf: the bytes of the header.
            walked: the walk over them.
            together: what varies in one pattern is left open in the others, too.
        """
        varying = self.varying() if together else frozenset[int]()
        for number, pattern in enumerate(self.kept):
            if pattern.parsed.is_like(buf, walked) and (taught := pattern.taught(buf, walked, varying)):
                self.kept[number] = taught
                self._use(number, taught)
                return taught
        return None

    def keep(self, parsed: Parsed) -> Pattern | None:
        """Keep a header as a pattern, if that is worth it; what varies in the others may vary in it, too."""
        if not self._wants_more():
            return None
        pattern = Pattern(parsed, self.varying().intersection(parsed.tags))
        self.kept.insert(0, pattern)
        del self.kept[self.most :]
        return pattern

    def varying(self) -> frozenset[int]:
        """The tags that vary in a pattern."""
        return frozenset[int]().union(*(pattern.varying for pattern in self.kept))

    def _wants_more(self) -> bool:
        """Whether one more is worth its keep: of files that have nothing in common fewer and fewer are."""
        self.in_vain += 1
        return self.in_vain <= self.most or not self.in_vain & (self.in_vain - 1)


class Register:
    """Patterns by what tells where to look for one, as many as were used last."""

    def __init__(self, most: int, patterns: int) -> None:
        """Keep at most `most` times `patterns` patterns."""
        self._most, self._patterns = most, patterns
        self._by_key: dict[bytes | None, Patterns] = {}

    def of(self, key: bytes | None) -> Patterns:
        """The patterns of a key, which count as used."""
        found = self._by_key.pop(key, None) or Patterns(self._patterns)
        self._by_key[key] = found
        if len(self._by_key) > self._most:
            del self._by_key[next(iter(self._by_key))]
        return found
