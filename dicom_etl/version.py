"""The version of this package: a leaf, so that a module that writes it down does not import the package's API."""

from __future__ import annotations

VERSION = "0.2.0"
