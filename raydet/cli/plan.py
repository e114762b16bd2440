"""`raydet plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli import options
from raydet.cli.options import adjusted, interruptible, starting_experiment
from raydet.errors import ConfigError

if TYPE_CHECKING:
    from raydet.config import Experiment
    from raydet.plan.fit import Option, Recommendation
    from raydet.plan.ledger import Ledger


def plan(
    recipe: options.RecipeOption = None,
    config: options.ConfigOption = None,
    backbone: options.BackboneOption = None,
    sets: options.SetOption = None,
    gpus: Annotated[int, typer.Option(help="Number of GPUs that share the global batch.")] = 1,
    gpu_memory: Annotated[
        str, typer.Option(help="Memory of each GPU, with its unit: 80GiB, 24GB, 16000MiB.")
    ] = "80GiB",
    objects: Annotated[
        int, typer.Option(help="Ground-truth boxes per image in the worst batch; the data are not read.")
    ] = 50,
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="Tabulate every MiT and this backbone, ddp and fsdp, with and without checkpointing; takes longer.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; sizes in bytes.")] = False,
) -> None:
    """Estimate the memory of one GPU in a training step, by category; needs neither GPU nor data."""
    experiment = adjusted(starting_experiment(recipe, config), backbone=backbone, sets=sets)
    with interruptible():
        answer = _answer(experiment, gpus, gpu_memory, objects, table)
    if as_json:
        typer.echo(json.dumps(answer.as_json()))
    else:
        typer.echo(answer.as_text())


@dataclass(frozen=True)
class _Answer:
    """The plan of an experiment; sizes in bytes."""

    experiment: Experiment
    gpus: int
    memory_bytes: int
    objects: int
    share: int
    """Images per GPU and step."""
    ledger: Ledger
    largest: int | None
    """Largest micro-batch; None: not even one image fits."""
    recommendation: Recommendation
    table: list[tuple[str, Option]] | None

    @property
    def fits(self) -> bool:
        return self.ledger.peak_bytes <= self.memory_bytes

    def as_json(self) -> dict[str, object]:
        best = self.recommendation
        answer: dict[str, object] = {
            "name": self.experiment.name,
            "backbone": self.experiment.model.backbone.label,
            "gpus": self.gpus,
            "gpu_memory_bytes": self.memory_bytes,
            "objects": self.objects,
            "global_batch": self.experiment.train.global_batch,
            "strategy": self.ledger.layout.kind,
            "micro_batch": self.ledger.micro_batch,
            "accumulation": self.ledger.accumulation,
            "rows": [
                {
                    "name": row.name,
                    "bytes": row.bytes,
                    "bytes_per_image": row.image_bytes,
                    "bytes_at_peak": row.peak_bytes,
                }
                for row in self.ledger.rows
            ],
            "peak_bytes": self.ledger.peak_bytes,
            "allocated_bytes": self.ledger.allocated_bytes,
            "peak_moment": self.ledger.moment,
            "fits": self.fits,
            "largest_micro_batch": self.largest,
            "recommendation": {
                **_option_json(best.option),
                "fits": best.fits,
                "settings": best.settings,
                "reason": best.reason,
            },
        }
        if self.table is not None:
            answer["table"] = [
                {"backbone": backbone, **_option_json(option)} for backbone, option in self.table
            ]
        return answer

    def as_text(self) -> str:
        from raydet.plan.sizes import format_bytes

        train, found, best = self.experiment.train, self.ledger, self.recommendation
        height, width = self.experiment.data.canvas_hw
        images = f"micro-batch {found.micro_batch} x {found.accumulation}"
        lines = [
            f"{self.experiment.name}: {self.experiment.model.backbone.label}, canvas {height} x {width}, "
            f"{train.precision}, activation checkpointing {train.activation_checkpointing}",
            f"{self.gpus} x {format_bytes(self.memory_bytes)}, {found.layout.kind}, global batch {train.global_batch} "
            f"({images}), {self.objects} objects per image",
            "",
            *_aligned(
                ("per GPU", "at its largest", "per image", "at the peak"),
                [
                    (
                        row.name,
                        *(format_bytes(x) if x else "" for x in (row.bytes, row.image_bytes, row.peak_bytes)),
                    )
                    for row in found.rows
                    if row.bytes
                ]
                + [("peak", "", "", format_bytes(found.peak_bytes))],
            ),
            "",
            f"peak in the {found.moment}: {format_bytes(found.peak_bytes)} of {format_bytes(self.memory_bytes)}, "
            + ("fits" if self.fits else "DOES NOT FIT"),
            f"largest micro-batch with these settings: {self.largest or 'none'} (of {self.share} images per GPU and "
            "step)",
            ("recommended: " if best.fits else "least: ")
            + f"{' '.join(best.settings)}, peak {format_bytes(best.option.ledger.peak_bytes)}",
            f"because {best.reason}" if best.fits else best.reason,
        ]
        if self.table is not None:
            lines += ["", *self._table_lines()]
        return "\n".join(lines)

    def _table_lines(self) -> list[str]:
        from raydet.plan.sizes import format_bytes

        assert self.table is not None
        return _aligned(
            ("backbone", "strategy", "checkpointing", "weights", "micro-batch", "peak", ""),
            [
                (
                    backbone,
                    option.strategy,
                    option.activation_checkpointing,
                    format_bytes(option.ledger.bytes_of("weights")),
                    f"{option.ledger.micro_batch} x {option.ledger.accumulation}",
                    format_bytes(option.ledger.peak_bytes),
                    "fits" if option.micro_batch else "does not fit",
                )
                for backbone, option in self.table
            ],
        )


def _answer(experiment: Experiment, gpus: int, gpu_memory: str, objects: int, with_table: bool) -> _Answer:
    from raydet.parallel.layout import layout_of
    from raydet.plan.fit import fit_table, largest_micro_batch, rank_share, recommend
    from raydet.plan.ledger import check_numbers, ledger
    from raydet.plan.sizes import parse_memory

    train = experiment.train
    memory_bytes = parse_memory(gpu_memory, where="--gpu-memory")
    check_numbers(world_size=gpus, num_objects=objects)
    layout = layout_of(train.strategy, world_size=gpus, shard_ranks=train.shard_ranks)
    if layout.kind == "hsdp" and train.shard_ranks is None:
        raise ConfigError(
            "train.strategy=hsdp requires train.shard_ranks, as the plan does not know the nodes"
        )
    share = rank_share(experiment, gpus)
    largest = largest_micro_batch(
        experiment, world_size=gpus, strategy=layout.kind, memory_bytes=memory_bytes, num_objects=objects
    )
    micro_batch = (largest or 1) if train.micro_batch == "auto" else train.micro_batch
    return _Answer(
        experiment=experiment,
        gpus=gpus,
        memory_bytes=memory_bytes,
        objects=objects,
        share=share,
        ledger=ledger(
            experiment,
            world_size=gpus,
            strategy=layout.kind,
            micro_batch=share if micro_batch is None else micro_batch,
            shard_ranks=train.shard_ranks,
            num_objects=objects,
        ),
        largest=largest,
        recommendation=recommend(experiment, world_size=gpus, memory_bytes=memory_bytes, num_objects=objects),
        table=fit_table(experiment, world_size=gpus, memory_bytes=memory_bytes, num_objects=objects)
        if with_table
        else None,
    )


def _option_json(option: Option) -> dict[str, object]:
    return {
        "strategy": option.strategy,
        "activation_checkpointing": option.activation_checkpointing,
        "largest_micro_batch": option.micro_batch,
        "micro_batch": option.ledger.micro_batch,
        "accumulation": option.ledger.accumulation,
        "weights_bytes": option.ledger.bytes_of("weights"),
        "peak_bytes": option.ledger.peak_bytes,
    }


def _aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under their heads in aligned columns: text to the left, numbers to the right."""
    columns = [[head, *cells] for head, *cells in zip(heads, *rows, strict=True)]
    padded = []
    for cells in columns:
        width = max(map(len, cells))
        is_number = any(cell[:1].isdigit() for cell in cells)
        padded.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in cells])
    return ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
