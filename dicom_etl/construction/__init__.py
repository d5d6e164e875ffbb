"""Building the FHIR resources of a dataset's units: which units are built, in which chunks, and how a shard is stored.

In the order of a run: `identities` (patients matched over the whole dataset), `plan` (the units whose inputs have
changed), `building` (of their chunks by workers: `chunks`, `chunk_builder`, `unit_resources`), `shards` (written by
workers: `assembly`), `findings` and `dataset_state` (of the dataset as a whole). `stages.build` calls these in turn.

Not here: the content of a resource, which is a function of header rows (`fhir`), and the rules of patient matching
(`identity.matching`).
"""
