"""Read-only views on lake, sources and settings: what a run would do, what is loaded, why a subject looks as it does.

Not here: how a person sees them (`cli`), and the quality of the data (`quality`).
"""
