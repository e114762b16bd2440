"""`raydet tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydet.cli import options
from raydet.cli.options import (
    adjusted,
    check_json,
    interruptible,
    local_directory,
    parse_overrides,
    starting_experiment,
)
from raydet.cli.report import log_report
from raydet.errors import ConfigError, RaydetError

if TYPE_CHECKING:
    from raydet.tune.early_stopping import EarlyStopping
    from raydet.tune.run import StudyPlan

SeedsOption = Annotated[
    int | None,
    typer.Option(
        help="Trials per cell, with different seeds; default: as in earlier commands of the study, or 1."
    ),
]
ArmsOption = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Run only these named arms of the space, and the controls."),
]
AshaOption = Annotated[
    int | None,
    typer.Option(
        metavar="EPOCHS",
        help="Stop trials of screening phases early (ASHA), first after so many epochs.",
    ),
]
AshaReductionOption = Annotated[
    int | None,
    typer.Option(help="With --asha: one in so many trials (3) continues, up to as many times more epochs."),
]
RetriesOption = Annotated[
    int,
    typer.Option(help="How often a failed trial is retried before the study continues without it."),
]
MaxTrialsOption = Annotated[
    int | None,
    typer.Option(help="Stop after this many trials, retries included; the same command continues."),
]
BudgetGpuOption = Annotated[
    float | None,
    typer.Option(
        metavar="HOURS",
        help="Stop with exit code 6 once the study has used so many GPU-hours, earlier commands included.",
    ),
]
BudgetWorkerOption = Annotated[
    float | None,
    typer.Option(metavar="HOURS", help="Like --budget-gpu-hours, for hours of workers without a GPU."),
]
ReportOption = Annotated[
    bool, typer.Option("--report/--no-report", help="Write the report once all trials have ended.")
]


def tune(
    space: Annotated[
        str, typer.Option(help="The study: one of `raydet spaces`, or a Python file with a function `study`.")
    ],
    recipe: options.RecipeOption = None,
    backbone: options.BackboneOption = None,
    data: options.DataOption = None,
    epochs: options.EpochsOption = None,
    sets: options.SetOption = None,
    arms: ArmsOption = None,
    seeds: SeedsOption = None,
    max_trials: MaxTrialsOption = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of concurrent trials; default: as many as the cluster has GPUs for, else 1."
        ),
    ] = None,
    workers: options.WorkersOption = 1,
    min_workers: options.MinWorkersOption = None,
    cpus_per_worker: options.CpusOption = None,
    use_gpu: options.GpuOption = None,
    wait_minutes: options.WaitMinutesOption = None,
    storage: Annotated[
        str, typer.Option(help="Directory of all studies, readable from every node.")
    ] = "runs",
    checkpoint_minutes: options.CheckpointMinutesOption = 5.0,
    max_failures: options.MaxFailuresOption = 3,
    retries: RetriesOption = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry trials that failed for good in earlier commands.")
    ] = False,
    budget_gpu_hours: BudgetGpuOption = None,
    budget_worker_hours: BudgetWorkerOption = None,
    asha: AshaOption = None,
    asha_reduction: AshaReductionOption = None,
    host_memory_percent: options.HostMemoryOption = 93.0,
    heartbeat_seconds: options.HeartbeatOption = 30.0,
    stall_minutes: options.StallMinutesOption = 30.0,
    report: ReportOption = True,
    tracking_uri: options.TrackingOption = None,
    log_checkpoints: options.LogCheckpointsOption = "none",
    dry_run: options.DryRunOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Run a study. The same command runs the missing trials, and none twice."""
    from raydet.cli.spaces import load_space
    from raydet.launch.worker_options import WorkerOptions
    from raydet.resilience.fault_tolerance import FaultTolerance
    from raydet.tune.budget import Budget
    from raydet.tune.journal import read_journal
    from raydet.tune.options import StudyOptions
    from raydet.tune.preregistration import most_seeds
    from raydet.tune.run import is_complete, plan_study, run_study

    check_json(as_json, dry_run)
    directory = local_directory(storage, "--storage")
    base = adjusted(starting_experiment(recipe, None), backbone=backbone, data=data, epochs=epochs)
    chosen = [] if backbone is None else ["model.backbone"]
    chosen_arms = None if arms is None else [arm.strip() for arm in arms.split(",")]
    study = load_space(space, base, parse_overrides(sets), chosen=chosen, arms=chosen_arms)
    study_options = StudyOptions(
        storage=directory,
        seeds=most_seeds(read_journal(directory / study.name)) if seeds is None else seeds,
        max_trials=max_trials,
        concurrency=concurrency,
        worker_options=WorkerOptions(
            workers=workers,
            min_workers=min_workers,
            cpus_per_worker=cpus_per_worker,
            use_gpu=use_gpu,
            wait_s=None if wait_minutes is None else wait_minutes * 60,
        ),
        fault_tolerance=FaultTolerance(
            checkpoint_s=checkpoint_minutes * 60,
            max_failures=max_failures,
            host_memory=host_memory_percent / 100,
            heartbeat_s=heartbeat_seconds,
            stall_s=stall_minutes * 60,
        ),
        retries=retries,
        retry_failed=retry_failed,
        early_stopping=_early_stopping(asha, asha_reduction),
        budget=Budget(gpu_hours=budget_gpu_hours, cpu_worker_hours=budget_worker_hours),
        tracking_uri=tracking_uri,
        log_checkpoints=log_checkpoints,
        task_code=Path(space) if study.base.task.kind == "custom" else None,
    )
    if dry_run:
        _print_study_plan(plan_study(study, study_options), as_json)
        return
    with interruptible():
        code = run_study(study, study_options)
        if report and is_complete(study, study_options):
            _report(study_options.storage / study.name, tracking_uri)
    raise typer.Exit(code)


def _report(directory: Path, tracking_uri: str | None) -> None:
    """Write and log the report; a failure does not fail the study."""
    from raydet.report.write import write_report

    try:
        written = write_report(directory)
        typer.echo(f"report: {written.page}")
        log_report(written, directory, tracking_uri)
    except RaydetError as error:
        typer.echo(f"the report is not complete: {error}; `raydet report {directory}` tries again", err=True)


def _early_stopping(epochs: int | None, reduction: int | None) -> EarlyStopping | None:
    from raydet.tune.early_stopping import DEFAULT_REDUCTION, EarlyStopping

    if epochs is None:
        if reduction is not None:
            raise ConfigError("--asha-reduction requires --asha EPOCHS")
        return None
    return EarlyStopping(epochs, DEFAULT_REDUCTION if reduction is None else reduction)


def _print_study_plan(plan: StudyPlan, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(plan))
        return
    for trial in plan["trials"]:
        typer.echo(f"{trial['status']:9} {trial['name']}")
    for phase in plan["undecided"]:
        typer.echo(f"undecided {phase}: depends on the results of earlier phases")
