"""Takes out of a server's words what they repeat of a request: secrets, and values that identify somebody.

A server may quote what it refuses. Of its words remain those that explain: message numbers, names of elements, codes,
references. What is in quotation marks is kept only where it is made of such words; what the request said of a person
is masked wherever it stands, also word by word; dates and long numbers are masked whoever they belong to.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from dicom_etl.identity.masking import MASKED

_SECRET = "(secret)"
_LONGEST = 10_000  # of what is looked at; far less is shown
_WORD = re.compile(r"[\w.-]*\w")
_QUOTED = re.compile(r"""(?<!\w)(["'`“‘«])(.*?)(["'`”’»])(?!\w)""", re.DOTALL)
_DATE = re.compile(r"(?<![\w.])(\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4})(?!\d|\.\d)")
_LONG_NUMBER = re.compile(r"\d{5}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_UID = re.compile(r"[0-2](\.\d+){2,}")
_ELEMENT = re.compile(r"(Bundle|Endpoint|ImagingStudy|OperationOutcome|Patient)(\.[a-z]\w*(\[\w+\])?)*")
# elements whose values are codes, names of code systems, references and UIDs: what an error is mostly about
_TELLING = frozenset(
    "resourceType id uid reference system code status use gender type mode method url address versionId".split()
)
# free text: masked as a whole, but not word by word, since its words are those of any sentence
_TEXTS = frozenset(("description", "text"))
_SUBSTRING = 5  # a word of so many letters, or in another script, is also found inside others


def without_values(text: str, secrets: Iterable[str], url: str, body: bytes | None) -> str:
    """`text` without secrets and without the identifying values of a request (its URL and its JSON)."""
    held = sorted(filter(None, secrets), key=len, reverse=True)
    plain = _without_secrets(text[:_LONGEST], held)
    plain = _without_secrets(html.unescape(unquote(plain)), held)  # `%7C` and `&#39;` are part of no word
    said = _Said.of(url, body)
    for whole in sorted(said.texts, key=len, reverse=True):
        plain = re.sub(re.escape(whole), MASKED, plain, flags=re.IGNORECASE)
    plain = _DATE.sub(MASKED, plain)
    plain = _QUOTED.sub(lambda match: match[1] + (match[2] if said.explains(match[2]) else "…") + match[3], plain)
    return _WORD.sub(lambda match: MASKED if said.identifies(match[0]) else match[0], plain)


def _without_secrets(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _SECRET)
    return text


@dataclass
class _Said:
    """The words of a request: those that identify, and those that explain. A word that is both identifies."""

    identifying: set[str] = field(default_factory=set)
    explaining: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, url: str, body: bytes | None) -> _Said:
        said = cls()
        parts = urlsplit(url)
        said.explaining.update(_words(unquote(parts.path)))
        for name, value in parse_qsl(parts.query):
            said.explaining.add(_plain(name))
            if not name.startswith("_"):
                said.identifying.update(_words(value))
        if body:
            said._take(orjson.loads(body), "", person=False)
        said.explaining -= said.identifying
        return said

    def _take(self, node: Any, key: str, *, person: bool) -> None:
        if isinstance(node, dict):
            self.explaining.update(map(_plain, node))
            person = person or node.get("resourceType") == "Patient"
            for name, value in node.items():
                self._take(value, name, person=person)
        elif isinstance(node, list):
            for value in node:
                self._take(value, key, person=person)
        elif isinstance(node, str):
            self._take_text(node, key, person=person)

    def _take_text(self, text: str, key: str, *, person: bool) -> None:
        if key in _TELLING:
            self.explaining.update(_words(text))
        elif key in _TEXTS and not person:
            self.texts.add(text)
        else:
            self.identifying.update(_words(text))

    def explains(self, quoted: str) -> bool:
        """Whether nothing but words that explain stand here, or the place of an element."""
        known = (_plain(word) in self.explaining or _ELEMENT.fullmatch(word) for word in _WORD.findall(quoted))
        return bool(_ELEMENT.fullmatch(quoted)) or all(known)

    def identifies(self, word: str) -> bool:
        """Whether a word is, or holds, one that identifies, or looks like a number of somebody."""
        plain = _plain(word)
        if plain in self.explaining or _ELEMENT.fullmatch(word):
            return False
        if any(part in self.identifying for part in (plain, *_parts(plain))):
            return True
        if any(one in plain for one in self.identifying if len(one) >= _SUBSTRING or not one.isascii()):
            return True
        return bool(_LONG_NUMBER.search(word)) and not (_UUID.fullmatch(word) or _UID.fullmatch(word))


def _words(text: str) -> Iterator[str]:
    """The words of a value, whole and in parts."""
    for word in _WORD.findall(text):
        plain = _plain(word)
        yield plain
        yield from _parts(plain)


def _parts(word: str) -> list[str]:
    """What a word is made of: of smith-jones also smith. Parts of numbers mean nothing."""
    return [part for part in re.split(r"[.\-_]", word) if not part.isdigit()]


def _plain(word: str) -> str:
    """Without accents and case: servers keep names so in their indexes, and tell what stands there."""
    decomposed = unicodedata.normalize("NFKD", word)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
