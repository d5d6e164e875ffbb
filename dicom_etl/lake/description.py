"""`lake.json`: the schema version of a lake, its random id, and the fingerprint of the key of its resource ids.

Not here: the creation of a lake, and which lakes are accepted (`tables.Lake.open`).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import orjson

from dicom_etl.lake.schemas import SCHEMA_VERSION

_FIRST_WITH_DATABASE = 3


@dataclass(frozen=True)
class LakeDescription:
    """The content of `lake.json`. Lakes of older schemas have neither `lake_id` nor `id_key`."""

    schema: Any  # an integer, unless another program wrote it
    lake_id: str | None
    id_key: str | None  # fingerprint of the key; None: the lake was created without one, and accepts any

    @classmethod
    def new(cls, id_key: str | None, lake_id: str | None = None) -> LakeDescription:
        """The description of a lake of the present schema; its id is random unless one is given."""
        return cls(SCHEMA_VERSION, lake_id or str(uuid.uuid4()), id_key)

    @classmethod
    def parse(cls, content: bytes) -> LakeDescription:
        """Read a description.

        Raises:
            ValueError: it is damaged.
        """
        fields = orjson.loads(content)
        if not isinstance(fields, dict) or "schema" not in fields:
            raise ValueError("not a description of a lake")
        description = cls(fields["schema"], fields.get("lake_id"), fields.get("id_key"))
        if description.is_current and not (
            isinstance(description.lake_id, str) and isinstance(description.id_key, str | None)
        ):
            raise ValueError("not a description of a lake")
        return description

    def dump(self) -> bytes:
        """The content of the file."""
        return orjson.dumps({"schema": self.schema, "lake_id": self.lake_id, "id_key": self.id_key})

    @property
    def is_current(self) -> bool:
        """Whether the lake has the schema that this version writes."""
        return bool(self.schema == SCHEMA_VERSION)

    @property
    def is_outdated(self) -> bool:
        """Whether the lake has an older schema."""
        return isinstance(self.schema, int) and self.schema < SCHEMA_VERSION

    @property
    def has_no_database(self) -> bool:
        """Whether the lake is older than the database: its upload ledgers are Parquet files."""
        return self.is_outdated and self.schema < _FIRST_WITH_DATABASE

    def has_other_key(self, id_key: str | None) -> bool:
        """Whether the resource ids of the lake were made with another key than that of a fingerprint."""
        return None not in (id_key, self.id_key) and self.id_key != id_key
