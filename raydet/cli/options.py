"""Options that several commands share, and what they make of them: an experiment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from raydet.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, ConfigError, Terminated

if TYPE_CHECKING:
    from raydet.config import Experiment
    from raydet.data.sources.bad_samples import OnBad
    from raydet.engine.open_run import TrainedRun

Choice = TypeVar("Choice", bound=str)

DEFAULT_RECIPE = "rgbte_mit_b1"

RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help=f"A run to start from, see `raydet recipes`; default: {DEFAULT_RECIPE}."),
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        help="mit_b0 ... mit_b5, or a model of timm, e.g. resnet50: replaces the recipe's backbone."
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="coco:PATH (or npy_yolo, voc, yolo, flir, kaist, shards), shards:URI, a path, or synthetic: replaces the "
        "recipe's data; settings of the format after a question mark, 'yolo:PATH?labels=fused'."
    ),
]
EpochsOption = Annotated[int | None, typer.Option(help="Replaces the recipe's number of epochs.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value; may be repeated.")
]
WorkersOption = Annotated[
    int, typer.Option(help="Training workers per run; they share the global batch and one result.")
]
CpusOption = Annotated[int | None, typer.Option(help="CPU threads per worker; default: an even share.")]
GpuOption = Annotated[
    bool | None,
    typer.Option(
        "--gpu/--cpu",
        help="One GPU per worker, or none; default: if the cluster has GPUs, or scales to them.",
    ),
]
MinWorkersOption = Annotated[
    int | None,
    typer.Option(help="After the loss of nodes, go on with as few as this; default: wait for all --workers."),
]
WaitMinutesOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="How long to wait at the start for nodes to join the cluster; default: 30, if it scales to what is asked.",
    ),
]
MaxFailuresOption = Annotated[
    int, typer.Option(min=0, help="Restarts of a run after the loss of a worker; pre-emption is not counted.")
]
CheckpointMinutesOption = Annotated[
    float,
    typer.Option(min=0.0, help="Save within an epoch after this long; the end of an epoch is always saved."),
]
CheckpointStepsOption = Annotated[
    int | None, typer.Option(min=1, help="Save within an epoch whenever this many optimiser steps are done.")
]
HostMemoryOption = Annotated[
    float,
    typer.Option(
        help="Part of a host's memory that may be in use, in percent; beyond, runs save and start again."
    ),
]
HeartbeatOption = Annotated[
    float,
    typer.Option(min=0.1, help="A worker that is silent for one and a half of these seconds is stalled."),
]
StallMinutesOption = Annotated[
    float, typer.Option(min=0.0, help="Workers that stand in the same place for so long are stalled.")
]
TrackingOption = Annotated[
    str | None,
    typer.Option(help="MLflow tracking URI, or `none`; default: sqlite in the storage directory."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would run, run nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="With --dry-run: one JSON object.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]
OtherDataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Other images with the same classes, all of them (see `raydet train --data`); default: those that "
        "the run was validated on.",
    ),
]
DeviceOption = Annotated[
    bool | None, typer.Option("--gpu/--cpu", help="Default: the GPU where there is one.")
]
AsJsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]
ConfigOption = Annotated[Path | None, typer.Option(help="A run's config.json, instead of a recipe.")]


@contextmanager
def interruptible(hint: str = "the same command continues") -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block with a hint. Typer would leave without a word."""

    is_terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal is_terminated
        is_terminated = True
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:  # Ray Tune turns ours into a plain one
        if is_terminated:
            typer.echo(f"stopped by SIGTERM; {hint}", err=True)
            raise typer.Exit(EXIT_PREEMPTED) from None
        typer.echo(f"interrupted; {hint}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def starting_experiment(recipe_name: str | None, config: Path | None) -> Experiment:
    """What `--recipe` or `--config` names."""
    from raydet.config import Experiment
    from raydet.recipes import recipe

    if config is None:
        return recipe(recipe_name or DEFAULT_RECIPE)
    if recipe_name is not None:
        raise ConfigError("--recipe and --config exclude one another; leave one out")
    try:
        text = config.read_text()
    except OSError as error:
        raise ConfigError(f"--config {config}: {error.strerror}; it wants a run's config.json") from error
    return Experiment.from_json(text, where=str(config))


def local_directory(text: str, flag: str) -> Path:
    """A path on this machine's file system, absolute."""
    if "://" in text:
        raise ConfigError(f"{flag} wants a directory, got {text}; object storage is not supported yet")
    return Path(text).absolute()


def opened_run(run: Path, *, data: str | None, use_gpu: bool | None) -> TrainedRun:
    """The run that a command was given, with its own images or others."""
    from raydet.data.build import detect_source
    from raydet.engine.open_run import open_trained
    from raydet.parallel.collectives import wanted_device

    source = None if data is None else detect_source(data)
    return open_trained(run.absolute(), data=source, device=wanted_device(use_gpu))


def describe_run(run: TrainedRun) -> dict[str, Any]:
    """Which detector, on which images."""
    data = run.experiment.data
    return {
        "run": str(run.run_dir),
        "checkpoint": run.checkpoint.name,
        "data": data.source.model_dump(mode="json"),
        "images": len(run.val_indices),
        "modalities": list(run.detector.modalities),
        "simulated": list(data.simulated),
        "device": str(run.device),
    }


def output_directory(path: Path) -> Path:
    """Make a directory that a flag names: before the work, not after it.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another") from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f"cannot write {path}: it is read-only for you; choose another")
    return path


def check_json(as_json: bool, dry_run: bool) -> None:
    """`--json` speaks of a plan only."""
    if as_json and not dry_run:
        raise ConfigError("--json goes with --dry-run")


def adjusted(
    experiment: Experiment,
    *,
    backbone: str | None,
    data: str | None,
    epochs: int | None,
    sets: Sequence[str] | None,
    on_bad: OnBad = "error",
) -> Experiment:
    """The experiment with the command line's changes, `--set` last."""
    from raydet.config import apply_overrides

    if data is not None:
        from raydet.data.build import adopt_source, detect_source

        experiment = adopt_source(experiment, detect_source(data), on_bad=on_bad)
    flags: dict[str, Any] = {}
    if backbone is not None:
        label, settings = _backbone_settings(experiment, backbone)
        flags |= settings
        flags["name"] = experiment.name.replace(experiment.model.backbone.label, label)
    if epochs is not None:
        flags["train.epochs"] = epochs
    return apply_overrides(apply_overrides(experiment, flags), parsed(sets))


def _backbone_settings(experiment: Experiment, text: str) -> tuple[str, dict[str, Any]]:
    """The label of a backbone, and what it sets; another variant of a MiT keeps the rest of it."""
    from raydet.config import MiTConfig, MiTVariant

    variant = text.removeprefix("mit_")
    if variant == text and variant not in get_args(MiTVariant):
        return text, {"model.backbone": {"kind": "timm", "name": text}}
    if isinstance(experiment.model.backbone, MiTConfig):
        return f"mit_{variant}", {"model.backbone.variant": variant}
    return f"mit_{variant}", {"model.backbone": {"kind": "mit", "variant": variant}}


def parsed(sets: Sequence[str] | None) -> dict[str, Any]:
    """`--set` options as overrides."""
    from raydet.config import parse_override

    return dict(parse_override(text) for text in sets or ())


def choices(text: str, known: Sequence[Choice], flag: str) -> list[Choice]:
    """Several of `known`, with commas, or `all`.

    >>> choices("all", ("load", "forward"), "--phases")
    ['load', 'forward']
    """
    if text == "all":
        return list(known)
    by_name = {str(choice): choice for choice in known}
    unknown = [name for name in text.split(",") if name not in by_name]
    if unknown:
        raise ConfigError(f"{flag}: unknown {unknown[0]!r}; known: {', '.join(by_name)}, all")
    return [by_name[name] for name in text.split(",")]
