"""The fast reader of headers: `FastReader().read(file, name, size)` -> `Row`.

Most files are similar to one that was read before, and are read as differences from it. From the bytes upwards:

- `encoding`: how elements are encoded; `sequences`: their items; `parser`: one pass over a header that is plain
- `decoders`: bytes -> values; `parsed_header`: a header that was parsed and decoded in full
- `byte_template`, `template`: how a similar header is read; `template_cache`: which templates are kept
- `file_content`: the bytes of a file; `reader`: the reader itself

Whatever is not plain is left to the reference reader, which is used for nothing else here.
"""

from dicom_etl.headers.fast.reader import FastReader, ReadCounts

__all__ = ["FastReader", "ReadCounts"]
