"""Person names: a PN value (PS3.5 6.2.1) as FHIR HumanNames, or as one line of text.

Not here: choosing among the names of several instances.
"""

from __future__ import annotations

from typing import Any

from dicom_etl.identity.matching import is_placeholder

# the component groups of PS3.5 6.2.1.1 as codes of the FHIR extension iso21090-EN-representation
_REPRESENTATIONS = ("ABC", "IDE", "SYL")
_REPRESENTATION_URL = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"


def convert_person_name(text: str | None) -> list[dict[str, Any]]:
    """Up to three HumanNames, one for each component group (`family^given^middle^prefix^suffix`) that has a name."""
    groups = (text or "").split("\\")[0].split("=")[:3]
    names = []
    for group, representation in zip(groups, _REPRESENTATIONS, strict=False):
        if name := _convert_group(group):
            if representation != "ABC":
                name["extension"] = [{"url": _REPRESENTATION_URL, "valueCode": representation}]
            names.append(name)
    return names


def format_person_name(text: str) -> str | None:
    """The first component group that has a name, in the order prefix, given, middle, family, suffix."""
    for group in text.split("="):
        family, given, middle, prefix, suffix = _split_components(group)
        if line := " ".join(" ".join((prefix, given, middle, family, suffix)).split()):
            return line
    return None


def _split_components(group: str) -> list[str]:
    return ([component.strip() for component in group.split("^")] + [""] * 5)[:5]


def _convert_group(group: str) -> dict[str, Any]:
    """A HumanName without empty elements; empty if the group has no name or a placeholder."""
    family, given, middle, prefix, suffix = components = _split_components(group)
    if is_placeholder(" ".join(components)):
        return {}
    name: dict[str, Any] = {"use": "usual", "family": family}
    name["given"] = [word for component in (given, middle) for word in component.split()]
    name["prefix"], name["suffix"] = prefix.split(), suffix.split()
    return {key: value for key, value in name.items() if value}
