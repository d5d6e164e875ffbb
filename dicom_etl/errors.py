"""The base of the errors that a person can fix: their text is a sentence that says what to do."""

from __future__ import annotations


class UserError(Exception):
    """Settings, data or the environment are not as they must be; the command prints the text and ends with code 2."""
