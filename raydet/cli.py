"""The command line. Imports torch and ray only inside the commands that need them.

Exit codes: 0 done, 1 a run failed, 2 usage or config, 3 data, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from raydet import __version__
from raydet.config import Experiment, apply_overrides, parse_override
from raydet.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError, RaydetError

DEFAULT_RECIPE = "rgbte_mit_b1"

app = typer.Typer(
    name="raydet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Distributed multi-modal object detection on Ray: fusion comparisons that can be trusted.",
)

RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help=f"A run to start from, see `raydet recipes`; default: {DEFAULT_RECIPE}."),
]
BackboneOption = Annotated[
    str | None, typer.Option(help="mit_b0 ... mit_b5: replaces the recipe's backbone.")
]
DataOption = Annotated[
    str | None,
    typer.Option(help="coco:PATH, npy_yolo:PATH, a path, or synthetic: replaces the recipe's data."),
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
    typer.Option("--gpu/--cpu", help="One GPU per worker, or none; default: if the cluster has GPUs now."),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(help="MLflow tracking URI, or `none`; default: sqlite in the storage directory."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would run, run nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="With --dry-run: one JSON object.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    try:
        app(args=list(sys.argv[1:] if arguments is None else arguments), standalone_mode=True)
    except RaydetError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the block with a hint. Typer would leave without a word."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raydet {__version__}")
        raise typer.Exit(EXIT_OK)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def recipes() -> None:
    """List the recipes."""
    from raydet.recipes import RECIPES

    for name, make in RECIPES.items():
        experiment = make()
        typer.echo(
            f"{name:16}  mit_{experiment.model.backbone.variant:4}  canvas {experiment.data.canvas_hw}  "
            f"{experiment.train.epochs} epochs, batch {experiment.train.global_batch}"
        )


@app.command()
def spaces() -> None:
    """List the studies."""
    from raydet.tune.spaces import space_names, space_summary

    for name in space_names():
        typer.echo(f"{name:16}  {space_summary(name)}")


@app.command()
def train(
    recipe: RecipeOption = None,
    config: Annotated[Path | None, typer.Option(help="A run's config.json, instead of a recipe.")] = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    epochs: EpochsOption = None,
    sets: SetOption = None,
    workers: Annotated[
        int, typer.Option(help="Ray Train workers; 0 runs in this process, or under torchrun, without Ray.")
    ] = 1,
    cpus_per_worker: CpusOption = None,
    use_gpu: GpuOption = None,
    run_dir: Annotated[
        str | None, typer.Option(help="Where the run lives; default: runs/<name>-<fingerprint>.")
    ] = None,
    tracking_uri: TrackingOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one detector. The same command again continues an interrupted run."""
    _check_json(as_json, dry_run)
    experiment = _start(recipe, config)
    experiment = _adjusted(experiment, backbone=backbone, data=data, epochs=epochs, sets=sets)
    if dry_run:
        _print_train_plan(experiment, as_json)
        return
    from raydet.train.single import train_single

    default = f"runs/{experiment.name}-{experiment.fingerprint()}"
    directory = _directory(run_dir or default, "--run-dir")
    with _interruptible():
        train_single(
            experiment,
            run_dir=directory,
            workers=workers,
            cpus_per_worker=cpus_per_worker,
            use_gpu=use_gpu,
            tracking_uri=tracking_uri,
        )


@app.command()
def tune(
    space: Annotated[str, typer.Option(help="The study; `raydet spaces`.")],
    recipe: RecipeOption = None,
    backbone: BackboneOption = None,
    data: DataOption = None,
    epochs: EpochsOption = None,
    sets: SetOption = None,
    seeds: Annotated[int, typer.Option(help="Runs per cell, with different seeds.")] = 1,
    max_trials: Annotated[
        int | None, typer.Option(help="Stop after this many new runs; the same command goes on.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Trials at a time; default: as many as the cluster has GPUs for, or 1.")
    ] = None,
    workers: WorkersOption = 1,
    cpus_per_worker: CpusOption = None,
    use_gpu: GpuOption = None,
    storage: Annotated[
        str, typer.Option(help="Directory of all studies, readable from every node.")
    ] = "runs",
    tracking_uri: TrackingOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study. The same command again runs what is missing, and nothing twice."""
    from raydet.tune.run import StudyOptions, plan_study, run_study
    from raydet.tune.spaces import load_space

    _check_json(as_json, dry_run)
    options = StudyOptions(
        storage=_directory(storage, "--storage"),
        seeds=seeds,
        max_trials=max_trials,
        concurrency=concurrency,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        use_gpu=use_gpu,
        tracking_uri=tracking_uri,
    )
    base = _adjusted(_start(recipe, None), backbone=backbone, data=data, epochs=epochs, sets=None)
    study = load_space(space, base, _parsed(sets))
    if dry_run:
        _print_study_plan(plan_study(study, options), as_json)
        return
    with _interruptible():
        raise typer.Exit(run_study(study, options))


def _start(recipe_name: str | None, config: Path | None) -> Experiment:
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


def _directory(text: str, flag: str) -> Path:
    if "://" in text:
        raise ConfigError(f"{flag} wants a directory, got {text}; object storage is not supported yet")
    return Path(text).absolute()


def _check_json(as_json: bool, dry_run: bool) -> None:
    if as_json and not dry_run:
        raise ConfigError("--json goes with --dry-run")


def _adjusted(
    experiment: Experiment,
    *,
    backbone: str | None,
    data: str | None,
    epochs: int | None,
    sets: Sequence[str] | None,
) -> Experiment:
    """The experiment with the command line's changes, `--set` last."""
    if data is not None:
        from raydet.data.build import adopt_source, detect_source

        experiment = adopt_source(experiment, detect_source(data))
    flags: dict[str, Any] = {}
    if backbone is not None:
        flags["model.backbone.variant"] = backbone.removeprefix("mit_")
        old = f"mit_{experiment.model.backbone.variant}"
        flags["name"] = experiment.name.replace(old, f"mit_{backbone.removeprefix('mit_')}")
    if epochs is not None:
        flags["train.epochs"] = epochs
    return apply_overrides(apply_overrides(experiment, flags), _parsed(sets))


def _parsed(sets: Sequence[str] | None) -> dict[str, Any]:
    return dict(parse_override(text) for text in sets or ())


def _print_train_plan(experiment: Experiment, as_json: bool) -> None:
    from raydet.models.build import describe_parameters

    parameters = describe_parameters(experiment)
    if as_json:
        typer.echo(json.dumps({"config": experiment.model_dump(mode="json"), "parameters": parameters}))
        return
    typer.echo(experiment.to_json(), nl=False)
    for part, count in parameters.items():
        typer.echo(f"{part:20} {count:>13,}")


def _print_study_plan(plan: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(plan))
        return
    for trial in plan["trials"]:
        typer.echo(f"{trial['status']:9} {trial['name']}")
    for phase in plan["undecided"]:
        typer.echo(f"undecided {phase}: follows from the results of the phase before")
