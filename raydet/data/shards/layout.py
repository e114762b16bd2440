"""Columns of the shard and index files, and limits on image sizes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch

ENTRY_FIELDS = (
    pa.field("image_id", pa.large_string(), nullable=False),
    pa.field("group_id", pa.large_string(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    # x1, y1, x2, y2 of each box, concatenated, in pixels; of a mask, no boxes; labels below 0: see `target`
    pa.field("boxes_xyxy", pa.large_list(pa.field("item", pa.float32(), nullable=False)), nullable=False),
    pa.field("labels", pa.large_list(pa.field("item", pa.int32(), nullable=False)), nullable=False),
    # of the pixels as read from the source, see `writer.ShardBuilder.add`
    pa.field("pixels_sha256", pa.binary(32), nullable=False),
)
ENTRY = pa.schema(ENTRY_FIELDS)
"""Everything about an image except its pixels."""
INDEX_SCHEMA = pa.schema(
    [
        pa.field(field.name, pa.dictionary(pa.int32(), pa.large_string()), nullable=False)
        if field.name == "group_id"
        else field
        for field in ENTRY_FIELDS
    ]
)

MASK = "mask"
"""The column of masks, which are stored like a modality with one channel."""
MODALITY_TYPES = {1: torch.uint8, 4: torch.float32}
MASK_TYPES = {1: torch.uint8, 2: torch.int16}
"""By the number of bytes per value."""

MAX_SIDE_PX = 32_768
MAX_PIXELS = 2**28
"""Limit per image and modality; larger ones are refused before memory is allocated."""


def shard_schema(modalities: Sequence[str], *, has_masks: bool) -> pa.Schema:
    """The fields of `ENTRY` and, per modality and for the mask, the pixels [C, H, W], C, and bytes per value."""
    fields = list(ENTRY_FIELDS)
    for name in (*modalities, MASK) if has_masks else modalities:
        fields += [
            pa.field(name, pa.large_binary(), nullable=False),
            pa.field(f"{name}.channels", pa.int32(), nullable=False),
            pa.field(f"{name}.value_bytes", pa.int32(), nullable=False),
        ]
    return pa.schema(fields)


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.arrow"
