"""Fixtures of tests that upload to a server."""

from tests.support.upload_fixtures import factory, lake, server

__all__ = ["factory", "lake", "server"]
