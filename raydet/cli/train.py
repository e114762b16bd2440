"""`raydet train`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli import options
from raydet.cli.options import adjusted, check_json, interruptible, local_directory, starting_experiment

if TYPE_CHECKING:
    from raydet.config import Experiment


def train(
    recipe: options.RecipeOption = None,
    config: options.ConfigOption = None,
    backbone: options.BackboneOption = None,
    data: options.DataOption = None,
    epochs: options.EpochsOption = None,
    sets: options.SetOption = None,
    workers: Annotated[
        int, typer.Option(help="Ray Train workers; 0: train in this process, or under torchrun, without Ray.")
    ] = 1,
    min_workers: options.MinWorkersOption = None,
    cpus_per_worker: options.CpusOption = None,
    use_gpu: options.GpuOption = None,
    wait_minutes: options.WaitMinutesOption = None,
    run_dir: Annotated[
        str | None, typer.Option(help="The run's directory; default: runs/<name>-<fingerprint>.")
    ] = None,
    checkpoint_minutes: options.CheckpointMinutesOption = 5.0,
    checkpoint_steps: options.CheckpointStepsOption = None,
    max_failures: options.MaxFailuresOption = 3,
    host_memory_percent: options.HostMemoryOption = 93.0,
    heartbeat_seconds: options.HeartbeatOption = 30.0,
    stall_minutes: options.StallMinutesOption = 30.0,
    tracking_uri: options.TrackingOption = None,
    log_checkpoints: options.LogCheckpointsOption = "none",
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Train one detector. The same command continues an interrupted run."""
    check_json(as_json, dry_run)
    experiment = starting_experiment(recipe, config)
    experiment = adjusted(experiment, backbone=backbone, data=data, epochs=epochs, sets=sets)
    if dry_run:
        _print_train_plan(experiment, as_json)
        return
    from raydet.launch.single import train_single
    from raydet.launch.worker_options import WorkerOptions
    from raydet.resilience.fault_tolerance import FaultTolerance

    default = f"runs/{experiment.name}-{experiment.fingerprint()}"
    directory = local_directory(run_dir or default, "--run-dir")
    with interruptible():
        train_single(
            experiment,
            run_dir=directory,
            worker_options=WorkerOptions(
                workers=workers,
                min_workers=min_workers,
                cpus_per_worker=cpus_per_worker,
                use_gpu=use_gpu,
                wait_s=None if wait_minutes is None else wait_minutes * 60,
            ),
            fault_tolerance=FaultTolerance(
                checkpoint_s=checkpoint_minutes * 60,
                checkpoint_steps=checkpoint_steps,
                max_failures=max_failures,
                host_memory=host_memory_percent / 100,
                heartbeat_s=heartbeat_seconds,
                stall_s=stall_minutes * 60,
            ),
            tracking_uri=tracking_uri,
            log_checkpoints=log_checkpoints,
        )


def _print_train_plan(experiment: Experiment, as_json: bool) -> None:
    from raydet.models.build import describe_parameters

    parameters = describe_parameters(experiment)
    if as_json:
        typer.echo(json.dumps({"config": experiment.model_dump(mode="json"), "parameters": parameters}))
        return
    typer.echo(experiment.to_json(), nl=False)
    for part, count in parameters.items():
        typer.echo(f"{part:20} {count:>13,}")
