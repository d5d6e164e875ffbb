"""What `make` runs, and the derivation of the committed tables."""
