"""The output folder: its paths, table schemas, atomic writes, locks and fingerprints."""
