"""Tests mirror the package; `servers/` starts the real servers, `support/` is shared by several packages."""
