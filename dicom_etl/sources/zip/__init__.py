"""Zip archives: `read_directory` lists the members of an archive, `open_member` opens one of them.

Belongs here: everything that depends on the zip format (APPNOTE), and the limits of what is read. Archives are as
untrusted as their content: an archive beyond a limit, or one that no honest program writes, is refused as a whole.

Not here: paths, subjects and roles of members, which are the same for all formats (`sources.archives`).
"""

from dicom_etl.sources.zip.directory import read_directory
from dicom_etl.sources.zip.members import open_member

__all__ = ["open_member", "read_directory"]
