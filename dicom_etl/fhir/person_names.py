"""Person names: PN (PS3.5 6.2.1) -> HumanName, and as one line of text.

Not here: which of several names counts.
"""

from __future__ import annotations

from typing import Any

from dicom_etl.identity.matching import is_placeholder

# PS3.5 6.2.1.1: component groups, as FHIR's iso21090-EN-representation names them
_REPRESENTATION = ("ABC", "IDE", "SYL")
_REPRESENTATION_URL = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"


def convert_person_name(text: str | None) -> list[dict[str, Any]]:
    """Up to three HumanNames, one for each component group: family^given^middle^prefix^suffix."""
    groups = (text or "").split("\\")[0].split("=")[:3]
    names = []
    for group, representation in zip(groups, _REPRESENTATION, strict=False):
        if name := _name(group):
            if representation != "ABC":
                name["extension"] = [{"url": _REPRESENTATION_URL, "valueCode": representation}]
            names.append(name)
    return names


def format_person_name(text: str) -> str | None:
    """A name as people write it: prefix, given, middle, family, suffix; of the first group that has one."""
    for group in text.split("="):
        family, given, middle, prefix, suffix = _components(group)
        if line := " ".join(" ".join((prefix, given, middle, family, suffix)).split()):
            return line
    return None


def _components(group: str) -> list[str]:
    return ([part.strip() for part in group.split("^")] + [""] * 5)[:5]


def _name(group: str) -> dict[str, Any]:
    family, given, middle, prefix, suffix = parts = _components(group)
    if is_placeholder(" ".join(parts)):
        return {}
    name: dict[str, Any] = {"use": "usual", "family": family}
    name["given"] = [word for part in (given, middle) for word in part.split()]
    name["prefix"], name["suffix"] = prefix.split(), suffix.split()
    return {key: value for key, value in name.items() if value}
