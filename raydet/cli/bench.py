"""`raydet bench`: measurements."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydet.cli import options
from raydet.cli.options import adjusted, interruptible, starting_experiment
from raydet.errors import ConfigError

if TYPE_CHECKING:
    from raydet.bench.train_step import Run, StepReport

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Benchmark training steps, checkpoints, inference, data loading, event histograms and evaluation.",
)


@bench.command("train-step")
def train_step(
    recipe: options.RecipeOption = None,
    config: options.ConfigOption = None,
    backbone: options.BackboneOption = None,
    sets: options.SetOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 4,
    objects: Annotated[int, typer.Option(min=0, help="Boxes per image; masks have none.")] = 8,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16, or both, separated by a comma; default: fp32, and bf16 if the device supports it."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="plain: a plain fp32 implementation of the step; seeds: the same, resized to 800 pixels as in the "
            "published runs, for boxes only; or both, separated by a comma."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps per implementation.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's.")] = None,
    use_gpu: options.DeviceOption = None,
    as_json: options.AsJsonOption = False,
) -> None:
    """Time a training step on random images, with boxes or masks: images/s, memory, operations, and a breakdown of the
    time."""
    experiment = adjusted(starting_experiment(recipe, config), backbone=backbone, sets=sets)
    precisions: Any = _choices("--precision", precision or "fp32,bf16", ("fp32", "bf16"))
    opponents: Any = _choices("--against", against, ("plain", "seeds")) if against else []
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler warns on machines without a GPU
    import torch

    from raydet.bench.train_step import bench_train_step
    from raydet.parallel.collectives import select_device
    from raydet.parallel.precision import check_precision

    device = select_device(use_gpu)
    if precision is None:
        try:
            check_precision(experiment.train.model_copy(update={"precision": "bf16"}), device)
        except ConfigError as error:
            precisions = ["fp32"]
            typer.echo(f"without bf16: {error}", err=True)
    if threads is not None:
        torch.set_num_threads(threads)
    with interruptible():
        report = bench_train_step(
            experiment,
            batch_size=batch,
            precisions=precisions,
            against=opponents,
            repeats=repeats,
            num_objects=objects,
            device=device,
        )
    typer.echo(json.dumps(asdict(report)) if as_json else "\n".join(lines_of(report)))


def _choices(flag: str, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = text.split(",")
    if set(chosen) - set(known) or len(set(chosen)) < len(chosen):
        raise ConfigError(f"{flag} must be one or more of {', '.join(known)}, got {text!r}")
    return chosen


def lines_of(report: StepReport) -> Iterator[str]:
    height, width = report.canvas_hw
    target = "masks" if report.objects is None else f"{report.objects} objects"
    yield (
        f"{report.experiment}: {report.batch} x {height} x {width}, {target}, "
        f"checkpointing {report.activation_checkpointing}; {report.device}, torch {report.torch_version}"
    )
    peaks = ", ".join(f"{name} {flops / 1e9:,.0f} GFLOP/s" for name, flops in report.peak_flops.items())
    yield f"forward {report.forward_flops_per_image / 1e9:,.1f} GFLOP per image; matrix peak {peaks}"
    yield ""
    head = f"{'':8} {'step s':>8} {'images/s':>9} {'MFU':>6} {'saved GiB':>10} {'peak GiB':>9} {'planned':>8}"
    yield f"{head}  median of {report.repeats}"
    for run in report.runs:
        yield _row(run)
    yield f"whole process: {report.process_peak_bytes / 2**30:.2f} GiB at its peak"
    for run in report.runs:
        if run.phases_s:
            yield ""
            yield f"{run.name}: breakdown of the time"
            total_s = sum(run.phases_s.values())
            for name, value_s in run.phases_s.items():
                yield f"  {name:58} {value_s:8.3f} s {value_s / total_s:6.1%}"
            yield f"{run.name}: top operators of a profiled step"
            for name, share in run.operators.items():
                yield f"  {name:69} {share:6.1%}"
    if report.agreement is not None:
        found = report.agreement
        yield ""
        yield (
            f"largest relative difference to plain: losses {found.loss:.1e}, gradients {found.gradient:.1e} "
            f"(fp64, {found.images} image{'s' if found.images > 1 else ''}); losses {found.fp32_loss:.1e} (fp32)"
        )


def _row(run: Run) -> str:
    mfu = "" if run.mfu is None else f"{run.mfu:.0%}"
    peak = "" if run.peak_bytes is None else f"{run.peak_bytes / 2**30:.2f}"
    planned = "" if run.planned_bytes is None else f"{run.planned_bytes / 2**30:.2f}"
    ratios = "  ".join(f"x{ratio:.2f} {name}" for name, ratio in run.faster_than.items())
    return (
        f"{run.name:8} {run.step_s:8.3f} {run.images_per_s:9.2f} {mfu:>6} {run.saved_bytes / 2**30:10.3f} "
        f"{peak:>9} {planned:>8}  {ratios}"
    ).rstrip()
