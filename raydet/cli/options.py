"""Options shared by several commands, and the experiment that they describe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_args

import typer

from raydet.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, ConfigError, Terminated

if TYPE_CHECKING:
    from raydet.config import Experiment, SplitName
    from raydet.data.sources.bad_samples import OnBad
    from raydet.engine.open_run import TrainedRun

Choice = TypeVar("Choice", bound=str)

DEFAULT_RECIPE = "rgbte_mit_b1"
WEIGHTS = "model.backbone.pretrained.path"

RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", help=f"The recipe to start from, see `raydet recipes`; default: {DEFAULT_RECIPE}."
    ),
]
BackboneOption = Annotated[
    str | None,
    typer.Option(
        help="mit_b0 ... mit_b5, rvt_tiny, rvt_small, rvt_base, or a timm model, e.g. resnet50; replaces the "
        "recipe's backbone."
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="coco:PATH (or npy_yolo, voc, yolo, flir, kaist, shards), shards:URI, a path, or synthetic; replaces the "
        "recipe's data. Settings of the format follow a question mark, 'yolo:PATH?labels=fused'."
    ),
]
EpochsOption = Annotated[int | None, typer.Option(help="Replaces the recipe's number of epochs.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a config value; may be repeated."),
]
WorkersOption = Annotated[int, typer.Option(help="Training workers per run; they share the global batch.")]
CpusOption = Annotated[int | None, typer.Option(help="CPU threads per worker; default: an equal share.")]
GpuOption = Annotated[
    bool | None,
    typer.Option(
        "--gpu/--cpu",
        help="One GPU per worker, or none; default: GPUs if the cluster has them or scales to them.",
    ),
]
MinWorkersOption = Annotated[
    int | None,
    typer.Option(
        help="After losing nodes, continue with as few workers as this; default: wait for all --workers."
    ),
]
WaitMinutesOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="How long to wait at the start for nodes to join the cluster; default: 30, if it scales to the request.",
    ),
]
MaxFailuresOption = Annotated[
    int, typer.Option(min=0, help="Restarts of a run after losing a worker; preemption does not count.")
]
CheckpointMinutesOption = Annotated[
    float,
    typer.Option(
        min=0.0, help="Interval of checkpoints within an epoch; the end of an epoch is always saved."
    ),
]
CheckpointStepsOption = Annotated[
    int | None, typer.Option(min=1, help="Interval of checkpoints within an epoch, in optimizer steps.")
]
HostMemoryOption = Annotated[
    float,
    typer.Option(help="Limit of a host's memory use, in percent; above it, runs save and restart."),
]
HeartbeatOption = Annotated[
    float,
    typer.Option(
        min=0.1, help="A worker without a heartbeat for 1.5 times as many seconds counts as stalled."
    ),
]
StallMinutesOption = Annotated[
    float, typer.Option(min=0.0, help="Workers without progress for this long count as stalled.")
]
TrackingOption = Annotated[
    str | None,
    typer.Option(help="MLflow tracking URI, or `none`; default: sqlite in the storage directory."),
]
LogCheckpointsOption = Annotated[
    Literal["none", "best", "all"],
    typer.Option(
        help="Checkpoints whose files are copied to MLflow at the end of a run; it lists all with metrics and path."
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would run, without running it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="With --dry-run: one JSON object.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]
OtherDataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="All images of another data set with the same classes, as for `raydet train --data`; default: the "
        "run's validation images.",
    ),
]
DeviceOption = Annotated[
    bool | None, typer.Option("--gpu/--cpu", help="Device; default: the GPU if there is one.")
]
AsJsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]
ConfigOption = Annotated[Path | None, typer.Option(help="A run's config.json, instead of a recipe.")]


@contextmanager
def interruptible(hint: str = "the same command continues") -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block with a hint; Typer would exit without a message."""

    is_terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal is_terminated
        is_terminated = True
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:  # Ray Tune raises a plain one for `Terminated`
        if is_terminated:
            typer.echo(f"stopped by SIGTERM; {hint}", err=True)
            raise typer.Exit(EXIT_PREEMPTED) from None
        typer.echo(f"interrupted; {hint}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def starting_experiment(recipe_name: str | None, config: Path | None) -> Experiment:
    """The experiment of `--recipe` or `--config`."""
    from raydet.config import Experiment
    from raydet.recipes import recipe

    if config is None:
        return recipe(recipe_name or DEFAULT_RECIPE)
    if recipe_name is not None:
        raise ConfigError("--recipe and --config exclude each other; leave one out")
    try:
        text = config.read_text()
    except OSError as error:
        raise ConfigError(f"--config {config}: {error.strerror}; expected a run's config.json") from error
    return Experiment.from_json(text, where=str(config))


def local_directory(text: str, flag: str) -> Path:
    """An absolute path on this machine's file system."""
    if "://" in text:
        raise ConfigError(f"{flag} must be a directory, got {text}; object storage is not supported yet")
    return Path(text).absolute()


def open_run(
    run: Path,
    *,
    data: str | None,
    use_gpu: bool | None,
    split: SplitName = "val",
    is_labelled: bool = True,
) -> TrainedRun:
    """Open the run of a command, with a part of its own images or another data set."""
    from raydet.data.build import detect_source
    from raydet.engine.open_run import open_trained
    from raydet.parallel.collectives import select_device

    source = None if data is None else detect_source(data, is_labelled=is_labelled)
    return open_trained(
        run.absolute(), data=source, split=split, is_labelled=is_labelled, device=select_device(use_gpu)
    )


def describe_run(run: TrainedRun) -> dict[str, object]:
    """The detector and the images of a run, for JSON output."""
    data = run.experiment.data
    return {
        "run": str(run.run_dir),
        "checkpoint": run.checkpoint.name,
        "data": data.source.model_dump(mode="json"),
        "images": len(run.indices),
        "modalities": list(run.model.modalities),
        "simulated": list(data.simulated),
        "device": str(run.device),
    }


def output_directory(path: Path) -> Path:
    """Create the output directory before any work starts.

    Raises:
        ConfigError: the directory cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another") from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f"cannot write {path}: it is read-only for you; choose another")
    return path


def check_json(as_json: bool, dry_run: bool) -> None:
    """Refuse `--json` without `--dry-run`."""
    if as_json and not dry_run:
        raise ConfigError("--json requires --dry-run")


def adjusted(
    experiment: Experiment,
    *,
    backbone: str | None = None,
    data: str | None = None,
    epochs: int | None = None,
    sets: Sequence[str] | None = None,
    on_bad: OnBad = "error",
    any_task: bool = False,
) -> Experiment:
    """The experiment with the options of the command line applied, `--set` last.

    Args:
        any_task: the data may have other targets than the task needs.
    """
    from raydet.config import apply_overrides

    if data is not None:
        from raydet.data.build import adopt_source, detect_source

        experiment = adopt_source(experiment, detect_source(data), on_bad=on_bad, any_task=any_task)
    flags: dict[str, object] = {}
    if backbone is not None:
        label, settings = _backbone_settings(experiment, backbone)
        flags |= settings
        flags["name"] = experiment.name.replace(experiment.model.backbone.label, label)
    if epochs is not None:
        flags["train.epochs"] = epochs
    return apply_overrides(apply_overrides(experiment, flags), parse_overrides(sets))


def _backbone_settings(experiment: Experiment, text: str) -> tuple[str, Mapping[str, object]]:
    """The label and the settings of `--backbone`; another variant of a MiT or of RVT keeps the other settings."""
    from raydet.config import MiTConfig, MiTVariant, RVTConfig, RVTVariant

    if text in [f"rvt_{variant}" for variant in get_args(RVTVariant)]:
        variant = text.removeprefix("rvt_")
        if isinstance(experiment.model.backbone, RVTConfig):
            return text, {"model.backbone.variant": variant}
        return text, {"model.backbone": {"kind": "rvt", "variant": variant}}
    variant = text.removeprefix("mit_")
    if variant == text and variant not in get_args(MiTVariant):
        return text, {"model.backbone": {"kind": "timm", "name": text}}
    if isinstance(experiment.model.backbone, MiTConfig):
        return f"mit_{variant}", {"model.backbone.variant": variant}
    return f"mit_{variant}", {"model.backbone": {"kind": "mit", "variant": variant}}


def parse_overrides(sets: Sequence[str] | None) -> dict[str, object]:
    """Overrides by config path, from `--set` options. A relative path of weights is from here: workers run in other
    directories."""
    from raydet.config import parse_override

    overrides: dict[str, object] = dict(parse_override(text) for text in sets or ())
    weights = overrides.get(WEIGHTS)
    if isinstance(weights, str) and weights and "://" not in weights:
        overrides[WEIGHTS] = os.path.abspath(os.path.expanduser(weights))
    return overrides


def parse_choices(text: str, known: Sequence[Choice], flag: str) -> list[Choice]:
    """Parse names of `known` separated by commas, or `all`.

    >>> parse_choices("all", ("load", "forward"), "--phases")
    ['load', 'forward']
    """
    if text == "all":
        return list(known)
    by_name = {str(choice): choice for choice in known}
    unknown = [name for name in text.split(",") if name not in by_name]
    if unknown:
        raise ConfigError(f"{flag}: unknown {unknown[0]!r}; known: {', '.join(by_name)}, all")
    return [by_name[name] for name in text.split(",")]


def one_of(text: str, known: Sequence[Choice], flag: str) -> Choice:
    """Parse one name of `known`.

    >>> one_of("load", ("load", "forward"), "--phase")
    'load'
    """
    for choice in known:
        if text == choice:
            return choice
    raise ConfigError(f"{flag} must be one of {', '.join(known)}, got {text!r}")
