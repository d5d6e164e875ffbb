"""The FHIR server: client, retry, transactions, linking."""
