"""Columns of the files, and the limits of what is read from them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

ENTRY_FIELDS = (
    pa.field("image_id", pa.large_string(), nullable=False),
    pa.field("group_id", pa.large_string(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    # x1, y1, x2, y2 of one box after the other, in pixels
    pa.field("boxes_xyxy", pa.large_list(pa.field("item", pa.float32(), nullable=False)), nullable=False),
    pa.field("labels", pa.large_list(pa.field("item", pa.int32(), nullable=False)), nullable=False),
    # of the pixels as the source gives them, see `writer.content_hash`
    pa.field("pixels_sha256", pa.binary(32), nullable=False),
)
ENTRY = pa.schema(ENTRY_FIELDS)
"""What is known of an image but its pixels."""
INDEX_SCHEMA = pa.schema(
    [
        pa.field(field.name, pa.dictionary(pa.int32(), pa.large_string()), nullable=False)
        if field.name == "group_id"
        else field
        for field in ENTRY_FIELDS
    ]
)

MAX_SIDE_PX = 32_768
MAX_PIXELS = 2**28
"""Per image and modality: beyond, a file is refused before anything is allocated."""


def shard_schema(modalities: Sequence[str]) -> pa.Schema:
    """An entry and, for each modality, the pixels [C, H, W], C, and the bytes of a value (1: uint8, 4: float32)."""
    fields = list(ENTRY_FIELDS)
    for name in modalities:
        fields += [
            pa.field(name, pa.large_binary(), nullable=False),
            pa.field(f"{name}.channels", pa.int32(), nullable=False),
            pa.field(f"{name}.value_bytes", pa.int32(), nullable=False),
        ]
    return pa.schema(fields)


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:06d}.arrow"
