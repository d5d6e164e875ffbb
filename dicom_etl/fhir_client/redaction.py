"""Redaction of text from a server: removes secrets, and the identifying values of the request that it answers.

A server may quote the values that it rejects. Words that explain an error remain: message numbers, names of elements,
codes, references. A quotation remains only if it consists of such words. Values that identify a person are masked
wherever they occur, as a whole and word by word. Dates and long numbers are always masked.
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
_MAX_LENGTH = 4_000  # characters that are examined; far fewer are shown
_MAX_ESCAPE_LENGTH = 8  # of one character, such as `&#x7c;`
_WORD = re.compile(r"[\w.-]*\w")
_QUOTED = re.compile(r"""(?<!\w)(["'`“‘«])(.*?)(["'`”’»])(?!\w)""", re.DOTALL)
_DATE = re.compile(r"(?<![\w.])(\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4})(?!\d|\.\d)")
_LONG_NUMBER = re.compile(r"\d{5}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_UID = re.compile(r"[0-2](\.\d+){2,}")
_ELEMENT = re.compile(r"(Bundle|Endpoint|ImagingStudy|OperationOutcome|Patient)(\.[a-z]\w*(\[\w+\])?)*")
# elements whose values are codes, names of code systems, references and UIDs: most errors are about these
_EXPLANATORY_ELEMENTS = frozenset(
    "resourceType id uid reference system code status use gender type mode method url address versionId".split()
)
# free text: masked as a whole, but not word by word, since its words occur in any sentence
_FREE_TEXT_ELEMENTS = frozenset(("description", "text"))
_MIN_SUBSTRING_LENGTH = 5  # a word of this length, or in another script, is also masked inside other words


def redact(text: str, secrets: Iterable[str], url: str, body: bytes | None) -> str:
    """The text without secrets and without the identifying values of a request.

    Args:
        text: text from a server; only its beginning is returned.
        secrets: texts to remove, also in percent-encoded or escaped form.
        url: address of the request; the values of its search parameters are identifying.
        body: JSON of the request.
    """
    longest_first = sorted(filter(None, secrets), key=len, reverse=True)
    result = _truncate(text, longest_first)
    result = _remove_secrets(html.unescape(unquote(result)), longest_first)  # `%7C` and `&#39;` are not part of a word
    request = _RequestWords.from_request(url, body)
    for free_text in sorted(request.free_texts, key=len, reverse=True):
        result = re.sub(re.escape(free_text), MASKED, result, flags=re.IGNORECASE)
    result = _DATE.sub(MASKED, result)
    result = _QUOTED.sub(
        lambda quote: quote[1] + (quote[2] if request.is_explanatory(quote[2]) else "…") + quote[3], result
    )
    return _WORD.sub(lambda word: MASKED if request.is_identifying(word[0]) else word[0], result)


def _truncate(text: str, secrets: Collection[str]) -> str:
    """The beginning of a text without secrets; it ends neither inside a secret nor inside a word."""
    margin = _MAX_ESCAPE_LENGTH * max(map(len, secrets), default=0)
    plain = _remove_secrets(text[: _MAX_LENGTH + margin], secrets)
    if len(text) <= _MAX_LENGTH + margin and len(plain) <= _MAX_LENGTH:
        return plain
    return plain[: max(0, min(_MAX_LENGTH, len(plain) - margin))].rpartition(" ")[0]


def _remove_secrets(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _SECRET)
    return text


@dataclass
class _RequestWords:
    """The words of a request by their kind; a word that is both identifying and explanatory is identifying."""

    identifying: set[str] = field(default_factory=set)
    explanatory: set[str] = field(default_factory=set)
    free_texts: set[str] = field(default_factory=set)

    @classmethod
    def from_request(cls, url: str, body: bytes | None) -> _RequestWords:
        words = cls()
        parts = urlsplit(url)
        words.explanatory.update(_split(unquote(parts.path)))
        for name, value in parse_qsl(parts.query):
            words.explanatory.add(_normalize(name))
            if not name.startswith("_"):
                words.identifying.update(_split(value))
        if body:
            try:
                words._add_content(orjson.loads(body))
            except ValueError:  # not JSON: any word in it may be identifying
                words.identifying.update(_split(body.decode(errors="replace")))
        words.explanatory -= words.identifying
        return words

    def _add_content(self, content: Any) -> None:
        # not recursive: a body may contain a resource that another client nested deeply
        stack: list[tuple[Any, str, bool]] = [(content, "", False)]  # node, its element, whether inside a Patient
        while stack:
            node, element, is_person = stack.pop()
            if isinstance(node, dict):
                self.explanatory.update(map(_normalize, node))
                is_person = is_person or node.get("resourceType") == "Patient"
                stack.extend((value, name, is_person) for name, value in node.items())
            elif isinstance(node, list):
                stack.extend((value, element, is_person) for value in node)
            elif isinstance(node, str):
                self._add_text(node, element, is_person=is_person)

    def _add_text(self, text: str, element: str, *, is_person: bool) -> None:
        if element in _EXPLANATORY_ELEMENTS:
            self.explanatory.update(_split(text))
        elif element in _FREE_TEXT_ELEMENTS and not is_person:
            self.free_texts.add(text)
        else:
            self.identifying.update(_split(text))

    def is_explanatory(self, quotation: str) -> bool:
        """Whether a quotation consists of explanatory words, or is the path of an element."""
        words = _WORD.findall(quotation)
        return bool(_ELEMENT.fullmatch(quotation)) or all(
            _normalize(word) in self.explanatory or _ELEMENT.fullmatch(word) for word in words
        )

    def is_identifying(self, word: str) -> bool:
        """Whether a word is or contains an identifying word, or looks like the number of a person."""
        plain = _normalize(word)
        if plain in self.explanatory or _ELEMENT.fullmatch(word):
            return False
        if any(part in self.identifying for part in (plain, *_parts(plain))):
            return True
        long_words = (each for each in self.identifying if len(each) >= _MIN_SUBSTRING_LENGTH or not each.isascii())
        if any(each in plain for each in long_words):
            return True
        return bool(_LONG_NUMBER.search(word)) and not (_UUID.fullmatch(word) or _UID.fullmatch(word))


def _split(text: str) -> Iterator[str]:
    """The words of a value, each as a whole and in parts."""
    for word in _WORD.findall(text):
        plain = _normalize(word)
        yield plain
        yield from _parts(plain)


def _parts(word: str) -> list[str]:
    """The parts of a word, such as smith and jones of smith-jones, without parts that are numbers."""
    return [part for part in re.split(r"[.\-_]", word) if part and not part.isdigit()]


def _normalize(word: str) -> str:
    """The word without accents and case: servers index names in this form, and quote them from the index."""
    decomposed = unicodedata.normalize("NFKD", word)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
