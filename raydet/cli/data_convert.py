"""`raydet data convert`."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from raydet.cli.options import (
    AsJsonOption,
    SetOption,
    adjusted,
    interruptible,
    one_of,
    starting_experiment,
)

if TYPE_CHECKING:
    from raydet.data.shards.manifest import Manifest


def convert(
    spec: Annotated[str, typer.Argument(help="The data set, as for `raydet train --data`.")],
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A directory, s3://BUCKET/... or gs://...")
    ],
    workers: Annotated[
        int, typer.Option(min=0, help="Ray workers that convert; 0: convert in this process, without Ray.")
    ] = 0,
    encoding: Annotated[
        str, typer.Option(help="zstd: lossless, a quarter of the size; raw: fastest from a fast local disk.")
    ] = "zstd",
    on_bad: Annotated[
        str,
        typer.Option(help="error: stop at the first bad image; skip: leave bad images out and list them."),
    ] = "error",
    images_per_shard: Annotated[
        int,
        typer.Option(
            "--images-per-shard",
            "--pictures-per-shard",  # its name until 2026-11
            min=1,
            help="Images per shard; the last one may have fewer.",
        ),
    ] = 64,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            "--anew",  # its name until 2026-11
            help="Replace an earlier conversion in DEST; leave it out to continue an interrupted conversion.",
        ),
    ] = False,
    sets: SetOption = None,
    as_json: AsJsonOption = False,
) -> None:
    """Write a data set as hashed Arrow shards, once. The same command continues an interrupted conversion."""
    from raydet.data.shards.manifest import Encoding
    from raydet.data.sources.bad_samples import OnBad

    chosen = one_of(encoding, get_args(Encoding), "--encoding")
    policy = one_of(on_bad, get_args(OnBad), "--on-bad")
    experiment = adjusted(starting_experiment(None, None), data=spec, sets=sets, on_bad=policy, any_task=True)
    from raydet.data.convert import convert as convert_source

    hint = "the same command without --overwrite continues" if overwrite else "the same command continues"
    with interruptible(hint), _cluster() if workers else nullcontext():
        manifest = convert_source(
            experiment.data,
            destination,
            encoding=chosen,
            workers=workers,
            on_bad=policy,
            images_per_shard=images_per_shard,
            overwrite=overwrite,
            report=_report,
        )
    size_bytes = sum(shard.size_bytes for shard in manifest.shards)
    if as_json:  # without the list of shards
        rest = manifest.model_dump(mode="json", exclude={"shards", "plan"})
        typer.echo(json.dumps(rest | {"num_shards": len(manifest.shards), "size_bytes": size_bytes}))
    else:
        typer.echo(_text(manifest, destination, size_bytes))


def _report(done: int, total: int) -> None:
    """Print a counter to a terminal, or one line to a log."""
    if sys.stderr.isatty() or done == total:
        typer.echo(f"\r{done}/{total} shards", nl=done == total, err=True)


def _cluster() -> AbstractContextManager[None]:
    from raydet.launch.cluster import cluster

    return cluster()


def _text(manifest: Manifest, destination: str, size_bytes: int) -> str:
    lines = [
        f"{destination}: {manifest.images} images in {len(manifest.shards)} shards ({manifest.encoding}), "
        f"{size_bytes / 1e6:,.1f} MB, {size_bytes / max(1, manifest.images) / 1e3:,.0f} kB per image",
        "boxes     " + ", ".join(f"{name} {count}" for name, count in manifest.boxes.items())
        if manifest.target == "boxes"
        else "masks     of " + ", ".join(manifest.classes),
        *(f"tree      {level.name}: {', '.join(level.groups)}" for level in manifest.levels),
    ]
    for name, entry in manifest.modalities.items():
        mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (entry.mean, entry.std))
        lines.append(f"{name:9} mean {mean}, std {std}")
    if manifest.target == "boxes" and not sum(manifest.boxes.values()):
        lines.append("warning   no image has a box: check that the labels belong to these images")
    if manifest.ignored:
        rules = ", ".join(f"{rule} {count}" for rule, count in manifest.ignored.items())
        lines.append(f"by rule   left out {sum(manifest.ignored.values())} objects: {rules}")
    left_out = {"images": manifest.left_out, "annotations": manifest.left_out_annotations}
    if any(left_out.values()):
        counts = " and ".join(f"{count} {kind}" for kind, count in left_out.items() if count)
        lines.append(f"left out  {counts}, see left_out.jsonl")
    lines += [f"sha256    {manifest.sha256}", f"content   {manifest.content_sha256}"]
    return "\n".join(lines)
