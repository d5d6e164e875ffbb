"""Redaction: removes secrets and identifying values of a request from the words of a server that repeats them.

A server may quote what it rejects. The words that explain remain: message numbers, names of elements, codes,
references. A quotation is kept only where it consists of such words; what the request says of a person is masked
wherever it occurs, also word by word; dates and long numbers are masked whoever they belong to.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from dicom_etl.identity.masking import MASKED

_SECRET = "(secret)"
_LONGEST = 4_000  # characters that are examined; far fewer are shown
_LONGEST_ESCAPE = 8  # characters for one, such as `&#x7c;`
_WORD = re.compile(r"[\w.-]*\w")
_QUOTED = re.compile(r"""(?<!\w)(["'`“‘«])(.*?)(["'`”’»])(?!\w)""", re.DOTALL)
_DATE = re.compile(r"(?<![\w.])(\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4})(?!\d|\.\d)")
_LONG_NUMBER = re.compile(r"\d{5}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_UID = re.compile(r"[0-2](\.\d+){2,}")
_ELEMENT = re.compile(r"(Bundle|Endpoint|ImagingStudy|OperationOutcome|Patient)(\.[a-z]\w*(\[\w+\])?)*")
# elements whose values are codes, names of code systems, references and UIDs: what an error is mostly about
_EXPLAINING_ELEMENTS = frozenset(
    "resourceType id uid reference system code status use gender type mode method url address versionId".split()
)
# free text: masked as a whole, but not word by word, since its words are those of any sentence
_FREE_TEXT_ELEMENTS = frozenset(("description", "text"))
_SHORTEST_SUBSTRING = 5  # a word of so many letters, or in another script, is also found inside others


def redact(text: str, secrets: Iterable[str], url: str, body: bytes | None) -> str:
    """`text` without secrets and without the identifying values of a request.

    Args:
        text: words of a server; only their beginning is returned.
        secrets: what is replaced as it is, also where it is percent-encoded or escaped.
        url: address of the request; the values of its search parameters identify.
        body: JSON of the request.
    """
    known = sorted(filter(None, secrets), key=len, reverse=True)
    plain = _cut(text, known)
    plain = _remove_secrets(html.unescape(unquote(plain)), known)  # `%7C` and `&#39;` are not part of a word
    request = _RequestWords.of(url, body)
    for whole in sorted(request.free_texts, key=len, reverse=True):
        plain = re.sub(re.escape(whole), MASKED, plain, flags=re.IGNORECASE)
    plain = _DATE.sub(MASKED, plain)
    plain = _QUOTED.sub(lambda match: match[1] + (match[2] if request.explains(match[2]) else "…") + match[3], plain)
    return _WORD.sub(lambda match: MASKED if request.identifies(match[0]) else match[0], plain)


def _cut(text: str, secrets: Collection[str]) -> str:
    """The beginning of a text without secrets, cut where it cuts neither a secret nor a word in two."""
    margin = _LONGEST_ESCAPE * max(map(len, secrets), default=0)
    plain = _remove_secrets(text[: _LONGEST + margin], secrets)
    if len(text) <= _LONGEST + margin and len(plain) <= _LONGEST:
        return plain
    return plain[: max(0, min(_LONGEST, len(plain) - margin))].rpartition(" ")[0]


def _remove_secrets(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _SECRET)
    return text


@dataclass
class _RequestWords:
    """The words of a request: those that identify, and those that explain. A word that is both identifies."""

    identifying: set[str] = field(default_factory=set)
    explaining: set[str] = field(default_factory=set)
    free_texts: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, url: str, body: bytes | None) -> _RequestWords:
        words = cls()
        parts = urlsplit(url)
        words.explaining.update(_split(unquote(parts.path)))
        for name, value in parse_qsl(parts.query):
            words.explaining.add(_normalize(name))
            if not name.startswith("_"):
                words.identifying.update(_split(value))
        if body:
            try:
                words._add_content(orjson.loads(body))
            except ValueError:  # not JSON: whatever it contains may identify
                words.identifying.update(_split(body.decode(errors="replace")))
        words.explaining -= words.identifying
        return words

    def _add_content(self, content: Any) -> None:
        # not recursive: a body may contain a resource that another client nested deeply
        stack: list[tuple[Any, str, bool]] = [(content, "", False)]  # node, its element, whether inside a Patient
        while stack:
            node, element, is_person = stack.pop()
            if isinstance(node, dict):
                self.explaining.update(map(_normalize, node))
                is_person = is_person or node.get("resourceType") == "Patient"
                stack.extend((value, name, is_person) for name, value in node.items())
            elif isinstance(node, list):
                stack.extend((value, element, is_person) for value in node)
            elif isinstance(node, str):
                self._add_text(node, element, is_person=is_person)

    def _add_text(self, text: str, element: str, *, is_person: bool) -> None:
        if element in _EXPLAINING_ELEMENTS:
            self.explaining.update(_split(text))
        elif element in _FREE_TEXT_ELEMENTS and not is_person:
            self.free_texts.add(text)
        else:
            self.identifying.update(_split(text))

    def explains(self, quotation: str) -> bool:
        """Whether a quotation consists of words that explain, or is the path of an element."""
        known = (_normalize(word) in self.explaining or _ELEMENT.fullmatch(word) for word in _WORD.findall(quotation))
        return bool(_ELEMENT.fullmatch(quotation)) or all(known)

    def identifies(self, word: str) -> bool:
        """Whether a word is, or contains, one that identifies, or looks like the number of a person."""
        plain = _normalize(word)
        if plain in self.explaining or _ELEMENT.fullmatch(word):
            return False
        if any(part in self.identifying for part in (plain, *_parts(plain))):
            return True
        long_words = (known for known in self.identifying if len(known) >= _SHORTEST_SUBSTRING or not known.isascii())
        if any(known in plain for known in long_words):
            return True
        return bool(_LONG_NUMBER.search(word)) and not (_UUID.fullmatch(word) or _UID.fullmatch(word))


def _split(text: str) -> Iterator[str]:
    """The words of a value, whole and in parts."""
    for word in _WORD.findall(text):
        plain = _normalize(word)
        yield plain
        yield from _parts(plain)


def _parts(word: str) -> list[str]:
    """What a word is made of: of smith-jones also smith. Parts of numbers mean nothing."""
    return [part for part in re.split(r"[.\-_]", word) if part and not part.isdigit()]


def _normalize(word: str) -> str:
    """Without accents and case: servers store names so in their indexes, and quote them from there."""
    decomposed = unicodedata.normalize("NFKD", word)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
