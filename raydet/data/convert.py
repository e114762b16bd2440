"""Convert any source into shards, in this process or on a Ray cluster: the same bytes for any number of workers.

A shard is a pure function of the source and the shard number. Each is written whole, then its record in `unfinished/`,
so a killed conversion resumes where it stopped; the manifest is written last. The plan (source, settings, image ids,
boxes or masks) is written first, and a conversion with another plan is refused. Other pixels that change between two
attempts are not noticed: finished shards stay as they are unless damaged.

Plain actors, not Ray Data: each shard has its own name, from which order, retries and resumption follow.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from raydet.config import DataConfig, ShardsSource
from raydet.config.moved import source_as_first_written
from raydet.data.build import colours_of, ignored_in, left_out_of, levels_of, open_source
from raydet.data.shards.layout import shard_name
from raydet.data.shards.manifest import (
    IMAGES,
    INDEX,
    LEFT_OUT,
    MANIFEST,
    SCHEMA_VERSION,
    Encoding,
    FileEntry,
    Manifest,
    ShardEntry,
    TargetKind,
    hash_of,
)
from raydet.data.shards.target import kind_of, target_bytes
from raydet.data.shards.writer import ShardBuilder, Summary, index_file, modality_entries, read_part
from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.base import Source
from raydet.data.storage import UNFINISHED, Store
from raydet.errors import ConfigError, DataError

PLAN = f"{UNFINISHED}/plan.json"
IMAGES_PER_SHARD = 64
CPU_WARNING_S = 30.0

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to write any shard of a conversion."""

    source: Source
    store: Store
    encoding: Encoding
    on_bad: OnBad
    images_per_shard: int
    plan_sha256: str
    target: TargetKind = "boxes"

    @property
    def num_shards(self) -> int:
        return -(-len(self.source) // self.images_per_shard)

    def write_shard(self, number: int) -> None:
        """Read the images of a shard and write it.

        Raises:
            DataError: an image is bad, or the shard cannot be written.
        """
        source, first = self.source, number * self.images_per_shard
        builder = ShardBuilder(
            source.modalities, self.encoding, num_classes=len(source.classes), target=self.target
        )
        bad_samples = BadSamples(self.on_bad)

        def add(index: int) -> None:
            builder.add(source.read(index))

        for index in range(first, min(first + self.images_per_shard, len(source))):
            bad_samples.try_read(source.image_ids[index], partial(add, index))
        left_out = [(item.name, item.reason) for item in bad_samples.left_out]
        shard, part = builder.finish(plan=self.plan_sha256, left_out=left_out)
        self.store.write(shard_name(number), shard)
        self.store.write(_part_name(number), part)


def convert(
    config: DataConfig,
    destination: str,
    *,
    encoding: Encoding = "zstd",
    workers: int = 0,
    on_bad: OnBad = "error",
    images_per_shard: int = IMAGES_PER_SHARD,
    overwrite: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write a source as shards; the same call again resumes, or returns the finished manifest.

    Args:
        destination: directory or URI, see `raydet.data.storage`; every node must reach it.
        workers: Ray actors of one CPU each, on the connected cluster; 0: this process, without Ray.
        overwrite: remove what another conversion left there first.
        report: takes the number of finished shards and of all shards.

    Raises:
        DataError: the source is bad, or the destination cannot be written.
        ConfigError: the destination holds another set or an unfinished conversion of one, or is the source.
    """
    store = Store(destination)
    if isinstance(config.source, ShardsSource) and Store(config.source.path).is_same_place(store):
        raise ConfigError(f"{store.uri}: the destination must differ from the source; choose another")
    source = open_source(config, on_bad=on_bad)
    target, annotations_sha256 = _annotations(source, on_bad)
    plan = _plan(
        config,
        source,
        annotations_sha256=annotations_sha256,
        encoding=encoding,
        on_bad=on_bad,
        images_per_shard=images_per_shard,
    )
    job = Job(source, store, encoding, on_bad, images_per_shard, hash_of(plan), target)
    if overwrite:
        _remove(store)
    finished = _finished_manifest(store, plan)
    if finished is not None:
        _clear(store)
        return finished
    _claim(store, plan)
    todo = [number for number in range(job.num_shards) if not _is_finished(job, number)]
    done = job.num_shards - len(todo)
    if done:
        logger.info("%s: %d of %d shards exist already", store.uri, done, job.num_shards)
    report(done, job.num_shards)
    for _ in _on_ray(job, todo, workers) if workers else map(job.write_shard, todo):
        done += 1
        report(done, job.num_shards)
    manifest = _finish(job, config, plan)
    _clear(store)
    return manifest


def _plan(config: DataConfig, source: Source, **settings: object) -> Mapping[str, object]:
    """The identity of a conversion: equal plans give equal bytes, unless pixels have changed."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source_as_first_written(config.source.model_dump(mode="json")),
        "simulate_events": config.simulate_events and config.simulate_events.model_dump(mode="json"),
        "classes": list(source.classes),
        "modalities": list(source.modalities),
        IMAGES: len(source),
        **({"class_tree": tree} if (tree := _class_tree(source)) else {}),
        **settings,
    }


def _class_tree(source: Source) -> dict[str, object]:
    """What the manifest says of classes beside their names; empty for most sets."""
    tree: dict[str, object] = {}
    if levels := levels_of(source):
        tree["levels"] = [level.model_dump(mode="json") for level in levels]
    if any(colours := colours_of(source)):
        tree["colours"] = [colour and list(colour) for colour in colours]
    return tree


def _annotations(source: Source, on_bad: OnBad) -> tuple[TargetKind, str]:
    """The kind of the targets, and a hash of ids, groups and targets. All masks are read for it."""
    digest = hashlib.sha256()
    bad_samples = BadSamples(on_bad)
    kinds: set[TargetKind] = set()
    ids = set()
    for index, (image_id, group_id) in enumerate(zip(source.image_ids, source.group_ids, strict=True)):
        if image_id in ids:
            raise DataError(f"image ids must be unique, got {image_id!r} twice; rename one of the images")
        ids.add(image_id)
        found = bad_samples.try_read(image_id, partial(source.targets, index))
        if found is None:
            digest.update(f"{image_id}\n{group_id}\n".encode())
            continue
        target, size_hw = found
        digest.update(f"{image_id}\n{group_id}\n{size_hw}\n".encode() + target_bytes(target))
        kinds.add(kind_of(target))
    if len(kinds) > 1:
        raise DataError("all images of a set must have boxes or all masks, got both; correct the source")
    return kinds.pop() if kinds else "boxes", digest.hexdigest()


def _finished_manifest(store: Store, plan: Mapping[str, object]) -> Manifest | None:
    text = store.read(MANIFEST)
    if text is None:
        return None
    try:
        manifest = Manifest.parsed(text, where=store.shown(MANIFEST))
    except DataError as error:
        raise ConfigError(f"{error}; --overwrite replaces it") from error
    _check_same_plan(store, manifest.plan, plan, "holds a set")
    damaged = _damaged_file(store, manifest)
    if damaged is None:
        return manifest
    logger.warning("%s is missing or damaged: writing the set again", store.shown(damaged))
    store.write(PLAN, _plan_text(plan))  # so that the shards still belong to a known conversion
    store.delete(MANIFEST)
    return None


def _damaged_file(store: Store, manifest: Manifest) -> str | None:
    """A file that differs from the manifest: by its hash on a disk, by its size in object storage."""
    sizes = store.sizes()
    if (manifest.left_out or manifest.left_out_annotations) and LEFT_OUT not in sizes:
        return LEFT_OUT
    for entry in (manifest.index, *manifest.shards):
        if sizes.get(entry.name) != entry.size_bytes:
            return entry.name
        if store.directory is not None and store.read_hash(entry.name) != entry.sha256:
            return entry.name
    return None


def _claim(store: Store, plan: Mapping[str, object]) -> None:
    """Write the plan, or check that the unfinished conversion in the store has the same one."""
    text = store.read(PLAN)
    if text is not None:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ConfigError(f"{store.shown(PLAN)} is not a conversion plan; --overwrite removes it")
        _check_same_plan(store, found, plan, "holds an unfinished conversion")
        return
    if shard_name(0) in store.names():
        raise ConfigError(f"{store.uri} holds shards of an unknown conversion; --overwrite removes them")
    store.write(PLAN, _plan_text(plan))


def _plan_text(plan: Mapping[str, object]) -> bytes:
    return (json.dumps(plan, indent=2) + "\n").encode()


def _check_same_plan(
    store: Store, found: Mapping[str, object], plan: Mapping[str, object], what: str
) -> None:
    unlike = [key for key in {**plan, **found} if plan.get(key) != found.get(key)]
    if unlike:
        raise ConfigError(
            f"{store.uri} {what} from another source or with other settings ({', '.join(unlike)} differ); choose "
            "another destination, or pass --overwrite to replace it"
        )


def _is_finished(job: Job, number: int) -> bool:
    """Whether the shard and its record exist and agree: by hash on a disk, by size in object storage."""
    content = job.store.read(_part_name(number))
    if content is None:
        return False
    try:
        _, summary = read_part(content)
    except DataError:
        return False
    if summary.plan != job.plan_sha256:
        return False
    if job.store.directory is None:  # objects are put whole; reading them all again would cost the network
        return job.store.size(shard_name(number)) == summary.size_bytes
    return job.store.read_hash(shard_name(number)) == summary.sha256


def _on_ray(job: Job, numbers: Sequence[int], workers: int) -> Iterator[None]:
    """Write shards on up to `workers` actors; Ray restarts an actor that is lost and retries its shard.

    A shard goes only to an actor that has started: actors that wait for a CPU delay nothing.
    """
    import ray
    from ray.exceptions import RayTaskError

    actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Writer)
    reference = [ray.put(job)]  # once, however many workers read it; in a list it travels as a reference
    writers = [actor.remote() for _ in range(min(workers, len(numbers)))]
    busy: dict[Any, Any] = {writer.started.remote(): writer for writer in writers}
    waiting, writing = list(reversed(numbers)), 0
    while waiting or writing:
        done, _ = ray.wait(list(busy), num_returns=1, timeout=CPU_WARNING_S)
        if not done and not writing:
            logger.warning("no worker has started yet: each needs a free CPU of the Ray cluster; waiting")
        for answer in done:
            writer = busy.pop(answer)
            try:
                has_written = ray.get(answer)
            except RayTaskError as error:
                raise error.cause from None
            if waiting:
                busy[writer.write_shard.remote(reference, waiting.pop())] = writer
                writing += 1
            if has_written:
                writing -= 1
                yield


class _Writer:
    """A worker that keeps the source open."""

    def __init__(self) -> None:
        self._job: Job | None = None

    def started(self) -> bool:
        return False  # it has written no shard

    def write_shard(self, reference: list[Any], number: int) -> bool:
        import ray

        if self._job is None:
            self._job = ray.get(reference[0])
        self._job.write_shard(number)
        return True


def _finish(job: Job, config: DataConfig, plan: Mapping[str, object]) -> Manifest:
    """Write the index, the list of images left out and the manifest, in this order."""
    parts = [_part_of(job, number) for number in range(job.num_shards)]
    entries, summaries = [batch for batch, _ in parts], [summary for _, summary in parts]
    index = index_file(entries)
    opened = left_out_of(job.source)
    num_annotations = sum(item.kind == "annotation" for item in opened)
    left_out = [(item.name, item.reason) for item in opened]
    left_out += [item for summary in summaries for item in summary.left_out]
    num_images = sum(batch.num_rows for batch in entries)
    if not num_images:
        raise DataError(f"no image is left: all {len(left_out)} were left out, the first: {left_out[0][1]}")
    labels = [batch.column("labels").flatten().to_numpy() for batch in entries]
    boxes = sum(np.bincount(column[column >= 0], minlength=len(job.source.classes)) for column in labels)
    job.store.write(INDEX, index)
    if left_out:
        lines = [json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in left_out]
        job.store.write(LEFT_OUT, "".join(lines).encode())
    else:
        job.store.delete(LEFT_OUT)  # may be left from a damaged set
    colours = colours_of(job.source)
    manifest = Manifest.of(
        encoding=job.encoding,
        classes=job.source.classes,
        modalities=modality_entries(summaries, job.source.modalities),
        simulated=config.simulated,
        target=job.target,
        levels=levels_of(job.source),
        colours=colours if any(colours) else (),
        images=num_images,
        boxes=dict(zip(job.source.classes, np.asarray(boxes).tolist(), strict=True)),
        left_out=len(left_out) - num_annotations,
        left_out_annotations=num_annotations,
        ignored=dict(ignored_in(job.source)),
        index=FileEntry(name=INDEX, sha256=hashlib.sha256(index).hexdigest(), size_bytes=len(index)),
        shards=tuple(
            ShardEntry(
                name=shard_name(number), sha256=part.sha256, size_bytes=part.size_bytes, images=batch.num_rows
            )
            for number, (batch, part) in enumerate(parts)
        ),
        plan=plan,
    )
    job.store.write(MANIFEST, manifest.to_json().encode())
    return manifest


def _part_of(job: Job, number: int) -> tuple[pa.RecordBatch, Summary]:
    """The record of a written shard.

    Raises:
        DataError: there is none, or it is damaged or another conversion's.
    """
    name = _part_name(number)
    content = job.store.read(name)
    if content is not None:
        entries, summary = read_part(content)
        if summary.plan == job.plan_sha256:
            return entries, summary
    raise DataError(
        f"{job.store.shown(name)} is missing or another conversion's: another process is writing to the same "
        "destination; run the command again"
    )


def _remove(store: Store) -> None:
    """Delete what a conversion has written there; the manifest first, so that no reader opens the rest."""
    store.delete(MANIFEST)
    for name in store.names():
        if name.startswith(f"{UNFINISHED}/") or name in (INDEX, LEFT_OUT) or _is_shard(name):
            store.delete(name)


def _clear(store: Store) -> None:
    for name in store.names():
        if name.startswith(f"{UNFINISHED}/"):
            store.delete(name)
    if store.directory is not None:
        with suppress(OSError):  # missing, or another process has just written into it
            (store.directory / UNFINISHED).rmdir()


def _is_shard(name: str) -> bool:
    digits = name.removeprefix("shard-").removesuffix(".arrow")
    return digits.isdecimal() and name == shard_name(int(digits))


def _part_name(number: int) -> str:
    return f"{UNFINISHED}/{number:06d}.arrow"
