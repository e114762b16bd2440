"""`raydet anomalies`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raydet.cli import options
from raydet.cli.options import describe_run, interruptible, one_of, open_run, output_directory, parse_choices
from raydet.errors import ConfigError

if TYPE_CHECKING:
    from raydet.config import AnomalyScore, Metric
    from raydet.report.anomalies import ScoreResult
    from raydet.stats.comparison import Comparison

    Results = Mapping[AnomalyScore, ScoreResult]


def anomalies(
    runs: Annotated[
        list[Path], typer.Argument(help="Directory of a run; several that differ in their seed.")
    ],
    scores: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="max_softmax, max_logit, energy, ..., separated by commas; all; or plain, which need no calibration. "
            "Default: all if the runs are calibrated, else plain.",
        ),
    ] = "",
    reference: Annotated[str, typer.Option(help="The score that others are compared with.")] = "max_softmax",
    metric: Annotated[str, typer.Option(help="The metric of the comparison.")] = "AUROC",
    data: options.OtherDataOption = None,
    split: Annotated[
        Literal["test", "val", "train"], typer.Option(help="Part of the run's own images.")
    ] = "test",
    draw: Annotated[
        int, typer.Option(min=0, help="Number of images to draw with their maps, beside the curves.")
    ] = 0,
    use_gpu: options.DeviceOption = None,
    as_json: options.AsJsonOption = False,
) -> None:
    """Measure how well anomaly scores of runs find what no class describes, and compare the scores: nothing is trained
    again. Writes anomalies/ into each run's directory."""
    from raydet.engine.calibration import read_calibration
    from raydet.metrics.names import ANOMALY_METRICS, ANOMALY_SCORES, CALIBRATED_SCORES
    from raydet.report.anomalies import (
        ANOMALIES,
        check_repeats,
        compare_scores,
        measure_anomalies,
        write_anomalies,
    )

    if data is not None and split != "test":
        raise ConfigError("--split is a part of the run's own images; leave it or --data out")
    metrics = {each.name: each for each in ANOMALY_METRICS}
    compared = one_of(metric, [*metrics], "--metric")
    opened = [open_run(run, data=data, use_gpu=use_gpu, split="val" if data else split) for run in runs]
    check_repeats(opened)
    calibrations = [read_calibration(run) for run in opened]
    if scores == "plain" or (not scores and None in calibrations):
        chosen = [name for name in ANOMALY_SCORES if name not in CALIBRATED_SCORES]
    else:
        chosen = parse_choices(scores or "all", ANOMALY_SCORES, "--scores")
    base = one_of(reference, chosen, "--reference")
    directories = [output_directory(run.run_dir / ANOMALIES) for run in opened]
    with interruptible("the same command restarts"):
        found = [
            measure_anomalies(run, chosen, calibration, tell=_tell)
            for run, calibration in zip(opened, calibrations, strict=True)
        ]
        comparisons = compare_scores(found, base, metrics[compared])
        contents = [
            write_anomalies(run, results, {**describe_run(run), "split": None if data else split})
            for run, results in zip(opened, found, strict=True)
        ]
        if draw:
            from raydet.report.drawings.anomalies import draw_anomalies, draw_curves

            for run, calibration, results, directory in zip(
                opened, calibrations, found, directories, strict=True
            ):
                draw_anomalies(run, chosen, calibration, directory, count=draw)
                draw_curves({name: result.records for name, result in results.items()}, directory)
    if as_json:
        verdicts = {
            name: {**asdict(each), "corrected_p_value": p_value, "verdict": each.verdict_at(p_value)}
            for name, (each, p_value) in comparisons.items()
        }
        typer.echo(
            json.dumps({"runs": contents, "reference": base, "metric": compared, "comparisons": verdicts})
        )
        return
    typer.echo("\n".join(_lines(found, base, metrics[compared], comparisons)))
    typer.echo("written: " + ", ".join(map(str, directories)))


def _tell(done: int, total: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{done}/{total} images", nl=done == total, err=True)


def _lines(
    runs: Sequence[Results],
    reference: AnomalyScore,
    metric: Metric,
    comparisons: Mapping[AnomalyScore, tuple[Comparison, float | None]],
) -> Iterator[str]:
    """A table of both protocols, then the comparisons; means over the runs."""
    from raydet.metrics.anomaly_records import IMAGE_METRICS, POOLED
    from raydet.metrics.names import ANOMALY_METRICS
    from raydet.metrics.records import score

    first = next(iter(runs[0].values())).records
    num_normal, num_anomalous = int(first.normal_N.sum()), int(first.anomalous_N.sum())
    yield (
        f"{len(runs)} run{'s' if len(runs) > 1 else ''}, {len(first.image_ids):,} images of "
        f"{len(set(first.group_ids.tolist())):,} groups, {num_anomalous + num_normal:,} pixels, "
        f"{num_anomalous / (num_anomalous + num_normal):.4%} of them anomalous (the AP of a constant map)"
    )
    yield (
        f"pooled: all pixels are one set and need one threshold; per image: means over the {first.num_mixed:,} images "
        "with pixels of both kinds, each with thresholds of its own: the two are not comparable"
    )
    yield ""
    names = (*POOLED, *IMAGE_METRICS)
    heads = [each.label.rjust(6) for each in ANOMALY_METRICS] + ["best F1*", "calibrated F1"]
    width = max(map(len, runs[0]))
    yield "  ".join(["".ljust(width), *heads])
    for name in runs[0]:
        results = [run[name] for run in runs]
        values = [_mean([score(result.records, key) for result in results]) for key in names]
        values.append(_mean([result.best.f1 for result in results]))
        values.append(_mean([at.f1 for result in results if (at := result.at_threshold) is not None]))
        cells = (
            "-".rjust(len(head)) if math.isnan(value) else f"{value:{len(head)}.4f}"
            for value, head in zip(values, heads, strict=True)
        )
        yield "  ".join([name.ljust(width), *cells])
    yield "* at the best threshold for these very pixels: optimistic; calibrated: at the one of raydet calibrate"
    if not comparisons:
        return
    yield ""
    yield (
        f"{metric.label} against {reference}, on the same runs and images; p is corrected for "
        f"{len(comparisons)} comparison{'s' if len(comparisons) > 1 else ''}"
    )
    for name, (each, p_value) in comparisons.items():
        start = f"{name:{width}}  {each.difference:+.4f}"
        if each.low is None or each.high is None or p_value is None:
            yield f"{start}  unknown: too few groups of images"
            continue
        verdict = each.verdict_at(p_value)
        words = {"A is better": "better", "B is better": "worse"}.get(verdict, verdict)
        yield f"{start}  [{each.low:+.4f}, {each.high:+.4f}]  p {p_value:.2g}  {words}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
