"""FHIR resources of many units: which are made again, in which batches, and how a shard of them is written.

Not here: what a resource says (`fhir`), and which patient a study belongs to (`identity.matching`).
"""
