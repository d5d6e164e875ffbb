"""The real servers that tests talk to: how each is built, started, shared by a test run, and stopped."""
