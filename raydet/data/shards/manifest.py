"""`manifest.json`: the description of a set of shards, and the hash that identifies it."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from raydet.config import Config, Level
from raydet.config.base import describe
from raydet.errors import DataError

MANIFEST = "manifest.json"
INDEX = "index.arrow"
LEFT_OUT = "left_out.jsonl"
SCHEMA_VERSION = 2

Encoding = Literal["raw", "zstd"]
"""raw: uncompressed, fastest from a fast disk. zstd: lossless, about a quarter of the bytes on real images, which are
stored as differences of neighbouring pixels, see `residuals`."""
TargetKind = Literal["boxes", "masks"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


IMAGES = "pictures"
"""The JSON key; it is part of the hash of existing sets."""


class FileEntry(Config):
    """A file beside the manifest."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+\.[a-z]+$")]
    """A bare name, because a manifest must not point elsewhere."""
    sha256: Sha256
    size_bytes: Count


class ShardEntry(FileEntry):
    images: Count = Field(alias=IMAGES)


class ModalityEntry(Config):
    """Statistics of a modality per channel, on a 0..1 scale."""

    channels: Annotated[int, Field(ge=1)]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Manifest(Config):
    """A set of shards."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    schema_version: int
    sha256: Sha256
    """Hash of all fields below except `plan`: it changes with any byte of the index or a shard, and with the order of
    the images."""
    content_sha256: Sha256
    """Hash of images, targets, names and classes; it does not depend on the encoding or the division into shards."""
    encoding: Encoding
    classes: tuple[str, ...]
    modalities: dict[str, ModalityEntry]
    simulated: tuple[Literal["event"], ...] = ()
    """Modalities that were simulated, not recorded."""
    target: TargetKind = "boxes"
    """What the images are annotated with; the JSON omits boxes."""
    levels: tuple[Level, ...] = ()
    """The class tree of masks, from the level above the classes to the roots; the JSON omits an empty one."""
    colours: tuple[tuple[int, int, int] | None, ...] = ()
    """Of the classes of masks, by label; the JSON omits it where no class has one."""
    images: Count = Field(alias=IMAGES)
    boxes: dict[str, Count]
    """Number of boxes by class."""
    left_out: Count
    """Number of images that could not be read; left_out.jsonl gives the reasons, for humans, and is not hashed."""
    left_out_annotations: Count = 0
    """Number of annotations that belong to no image; the JSON omits 0."""
    ignored: dict[str, Count] = Field(default_factory=dict)
    """Number of objects that are left out by a rule of the source, by rule; the JSON omits an empty one."""
    index: FileEntry
    shards: tuple[ShardEntry, ...]
    plan: dict[str, Any]
    """Source and settings of the conversion; for humans, and to recognise a repeated conversion."""

    @model_serializer(mode="wrap")
    def _fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All fields except later ones with their defaults, so that existing sets keep their bytes and hashes."""
        tree: dict[str, Any] = handler(self)
        for name in ("left_out_annotations", "ignored", "levels", "colours"):
            if not tree.get(name, True):
                del tree[name]
        if tree.get("target") == "boxes":
            del tree["target"]
        return tree

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """A manifest of the current schema, with its hashes."""
        draft = cls(schema_version=SCHEMA_VERSION, sha256="0" * 64, content_sha256="0" * 64, **fields)
        draft = draft.model_copy(update={"content_sha256": draft._content_hash()})
        return draft.model_copy(update={"sha256": draft._hash()})

    @classmethod
    def parsed(cls, text: bytes, *, where: str) -> Self:
        """A manifest from its JSON, with its hashes verified.

        Args:
            where: names the file in the error.

        Raises:
            DataError: the JSON is malformed, of another schema version, or altered.
        """
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: expected JSON, got a broken file ({error}); convert the set again"
            ) from None
        version = tree.get("schema_version") if isinstance(tree, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{where}: expected schema_version {SCHEMA_VERSION}, got {version!r}; convert the set again, or use "
                "the raydet that wrote it"
            )
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(f"{where}: {describe(error)}; convert the set again") from None
        if manifest.sha256 != manifest._hash() or manifest.content_sha256 != manifest._content_hash():
            raise DataError(
                f"{where}: the hash does not match the content: it was altered; convert the set again"
            )
        if manifest.images != sum(shard.images for shard in manifest.shards):
            raise DataError(f"{where}: images is not the sum over the shards; convert the set again")
        return manifest

    def _hash(self) -> str:
        return hash_of(self.model_dump(mode="json", exclude={"sha256", "plan"}))

    def _content_hash(self) -> str:
        # The index holds everything about every image, including the hash of its pixels.
        return hash_of([self.schema_version, self.classes, list(self.modalities), self.index.sha256])


def hash_of(content: Any) -> str:
    """The sha256 of JSON data in canonical form."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
