"""The functions that count the quality checks, one module per kind of check."""
