"""Who and what a row belongs to: patient keys, resource ids, the encoding of names, and what may be shown."""
