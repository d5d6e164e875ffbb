"""Reading units of files into header rows: which units are read, in which chunks, and how their rows are stored.

In the order of a run: `plan` (the units that have changed), `reading` (of their chunks by workers: `chunks`,
`chunk_reader`), `duplicates` (in the whole dataset), `shards` (written by workers: `assembly`). `stages.extract` calls
these in turn.

Not here: how a header is read (`headers`).
"""
