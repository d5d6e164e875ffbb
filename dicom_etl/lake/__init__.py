"""The lake, which is the output folder: schemas of its tables, atomic writes, recovery, locks, fingerprints, database.

Not here: what the tables contain, which the stages decide.
"""
