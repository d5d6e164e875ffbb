"""Reading units of files into header rows: pieces, duplicates, shards.

Not here: what a header says (`headers`), and when a dataset is read (`stages.extract`).
"""
