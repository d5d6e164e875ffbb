"""Withdrawal of a subject or a dataset: removal from lake, ledger and server, and the record that keeps it out."""
