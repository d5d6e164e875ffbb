"""The FHIR server: client, capability, retry, transactions, linking, and what is known of the resources on it.

Nothing here knows the lake, a finding or a dataset; `stages.upload` brings them together.
"""
