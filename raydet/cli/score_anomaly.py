"""`raydet score anomaly`."""

from __future__ import annotations

import json
import math
import posixpath
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raydet.cli.options import AsJsonOption, interruptible, output_directory
from raydet.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raydet.data.sources.score_maps import MaskAndMap
    from raydet.metrics.anomaly import BestF1
    from raydet.metrics.anomaly_records import AnomalyRecords
    from raydet.metrics.components import ComponentMetrics
    from raydet.stats.measured import Measured

GroupBy = Literal["directory", "image"]

NUM_VALUES = 1 << 16
"""Values that a mask can have."""
LARGEST_SCORE = 65535.0
"""Larger ones become infinite in float16, hence equal."""
SHOWN_VALUES = 20


def anomaly(
    truth: Annotated[Path, typer.Argument(help="Directory of masks of one channel: PNG, TIFF or BMP.")],
    maps: Annotated[
        Path,
        typer.Argument(
            help="Directory of maps with the same names: .npy of floats [H, W], or PNG or TIFF of 8 or 16 bits."
        ),
    ],
    anomaly: Annotated[
        str, typer.Option(metavar="VALUES", help="The masks' values of anomalies, separated by commas.")
    ] = "14",
    ignore: Annotated[
        str, typer.Option(metavar="VALUES", help="Values that are left out; all others are normal.")
    ] = "",
    lower_is_anomalous: Annotated[
        bool, typer.Option("--lower-is-anomalous", help="Low scores mean anomalies, e.g. of confidences.")
    ] = False,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize maps to their masks' size, bilinearly, if it differs.")
    ] = False,
    groups: Annotated[
        GroupBy | None,
        typer.Option(
            help="What resembles one another, and is resampled as a whole for intervals; default: directories, if "
            "there are several.",
        ),
    ] = None,
    components: Annotated[
        bool,
        typer.Option("--components", help="Add sIoU, PPV and F1 of connected components; reads maps twice."),
    ] = False,
    records: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Write the counted scores of every image.")
    ] = None,
    as_json: AsJsonOption = False,
) -> None:
    """AUROC, AP, FPR95 and best F1 of anomaly maps: over all pixels, and as means over images.

    The default value of anomalies is that of StreetHazards' files.
    """
    from raydet.data.sources.score_maps import pair_files
    from raydet.metrics.names import ANOMALY_METRICS
    from raydet.metrics.records import write_records
    from raydet.stats.measured import measured

    roles = Roles(_values(anomaly, "--anomaly"), _values(ignore, "--ignore"))
    if not roles.anomalous or set(roles.anomalous) & set(roles.ignored):
        raise ConfigError("--anomaly must name one value or more, none of which is in --ignore")
    if records is not None:
        output_directory(records.parent)
        if records.is_dir():
            raise ConfigError(f"--records must be a file, got the directory {records}; name a file in it")
    files = pair_files(truth, maps)
    with interruptible("the same command restarts"):
        card, found = _read(files, roles, lower_is_anomalous=lower_is_anomalous, resize=resize, groups=groups)
        if not card.num_anomalous or not card.num_normal:
            missing = "normal" if card.num_anomalous else "anomalous"
            raise DataError(
                f"{truth}: expected anomalous and normal pixels in the masks, got no {missing} ones: --anomaly is "
                f"{_listed(roles.anomalous)}, --ignore is {_listed(roles.ignored) or 'nothing'}, and the other values "
                f"are {_listed(card.normal_values) or 'none'}; correct the options, or choose other masks"
            )
        best = found.histogram().best_f1()
        overlaps = _components(files, card, best.threshold) if components else None
        scores = measured(found, ANOMALY_METRICS)
    if records is not None:
        write_records(records, found)
    if as_json:
        typer.echo(json.dumps(_as_json(card, scores, best, overlaps), allow_nan=False))
        return
    typer.echo("\n".join(_lines(card, scores, best, overlaps)))
    if records is not None:
        typer.echo(f"written: {records}")


@dataclass(frozen=True, slots=True)
class Roles:
    """What the values of masks mean; all others are normal."""

    anomalous: Sequence[int]
    ignored: Sequence[int]

    def is_anomalous(self, values: NDArray[np.integer]) -> NDArray[np.bool_]:
        """For each pixel."""
        return _is_one_of(self.anomalous, values)

    def is_ignored(self, values: NDArray[np.integer]) -> NDArray[np.bool_]:
        """For each pixel."""
        return _is_one_of(self.ignored, values)


@dataclass(frozen=True, slots=True)
class Card:
    """The protocol of a measurement: what was counted, and how."""

    roles: Roles
    lower_is_anomalous: bool
    group_by: GroupBy
    num_groups: int
    num_images: int
    num_mixed: int
    """Images with pixels of both kinds."""
    num_resized: int
    sizes_hw: Sequence[tuple[int, int]]
    """Of the masks, each once, ascending."""
    normal_values: Sequence[int]
    """Those that occur."""
    num_normal: int
    """Pixels."""
    num_anomalous: int
    num_ignored: int
    num_scores: int
    """Distinct ones in float16."""

    @property
    def prevalence(self) -> float:
        """The share of anomalous pixels, ignored ones left out."""
        return self.num_anomalous / (self.num_anomalous + self.num_normal)


def _values(text: str, flag: str) -> list[int]:
    """
    >>> _values("14,255", "--anomaly"), _values("", "--ignore")
    ([14, 255], [])
    """
    try:
        values = sorted({int(part) for part in text.split(",")} if text else ())
    except ValueError:
        values = [-1]
    if values and (values[0] < 0 or values[-1] >= NUM_VALUES):
        raise ConfigError(
            f"{flag} must be whole numbers from 0 to {NUM_VALUES - 1} separated by commas, got {text!r}"
        )
    return values


def _is_one_of(chosen: Sequence[int], values: NDArray[np.integer]) -> NDArray[np.bool_]:
    import numpy as np

    is_chosen_V = np.zeros(NUM_VALUES, bool)
    is_chosen_V[list(chosen)] = True
    return is_chosen_V[values]


def _read(
    files: Sequence[MaskAndMap],
    roles: Roles,
    *,
    lower_is_anomalous: bool,
    resize: bool,
    groups: GroupBy | None,
) -> tuple[Card, AnomalyRecords]:
    """Count the scores of all images, one image at a time."""
    import numpy as np

    from raydet.data.sources.score_maps import read_pixels
    from raydet.metrics.anomaly_records import AnomalyRecords, image_rows

    directories = [posixpath.dirname(pair.name) for pair in files]
    group_by = groups or ("directory" if len(set(directories)) > 1 else "image")
    group_ids = directories if group_by == "directory" else [pair.name for pair in files]
    parts, sizes, num_resized = [], set(), 0
    pixels_V = np.zeros(NUM_VALUES, np.int64)
    with typer.progressbar(files, label="reading", hidden=not sys.stderr.isatty()) as bar:
        for pair, group in zip(bar, group_ids, strict=True):
            values_HW, scores_HW, is_resized = read_pixels(pair, resize=resize)
            sizes.add(values_HW.shape)
            num_resized += is_resized
            pixels_V += np.bincount(values_HW.ravel(), minlength=NUM_VALUES)
            is_counted_HW = ~roles.is_ignored(values_HW)
            scores_N = scores_HW[is_counted_HW]
            _check_scores(scores_N, pair.scores)
            rows = image_rows(
                0, -scores_N if lower_is_anomalous else scores_N, roles.is_anomalous(values_HW[is_counted_HW])
            )
            parts.append(
                AnomalyRecords.of_rows(rows, image_ids=np.array([pair.name]), group_ids=np.array([group]))
            )
    found = AnomalyRecords.of_parts(parts)
    is_normal_V = pixels_V > 0
    is_normal_V[[*roles.anomalous, *roles.ignored]] = False
    card = Card(
        roles,
        lower_is_anomalous=lower_is_anomalous,
        group_by=group_by,
        num_groups=len(set(group_ids)),
        num_images=len(files),
        num_mixed=found.num_mixed,
        num_resized=num_resized,
        sizes_hw=sorted(sizes),
        normal_values=np.flatnonzero(is_normal_V).tolist(),
        num_normal=int(found.normal_N.sum(dtype=np.int64)),
        num_anomalous=int(found.anomalous_N.sum(dtype=np.int64)),
        num_ignored=int(pixels_V[list(roles.ignored)].sum()),
        num_scores=len(np.unique(found.code_N)),
    )
    return card, found


def _check_scores(scores_N: NDArray[np.floating], path: Path) -> None:
    import numpy as np

    num_nan = int(np.isnan(scores_N).sum())
    if num_nan:
        raise DataError(
            f"{path}: expected a score for every pixel that counts, got NaN for {num_nan:,}; repair the map, or "
            "leave these pixels out with --ignore"
        )
    finite = np.abs(scores_N[np.isfinite(scores_N)])
    largest = float(finite.max(initial=0))
    if largest > LARGEST_SCORE:
        raise DataError(
            f"{path}: expected scores of at most {LARGEST_SCORE:g} in amount, because pooled ones are compared in "
            f"float16, got {largest:g}; divide all maps by one number, which leaves the ranking as it is"
        )


def _components(files: Sequence[MaskAndMap], card: Card, threshold: float) -> ComponentMetrics:
    """Of the pixels that `threshold` calls anomalous, compared in float16 like pooled scores."""
    import numpy as np

    from raydet.data.sources.score_maps import read_pixels
    from raydet.metrics.components import component_metrics, component_overlaps

    found = []
    with typer.progressbar(files, label="components", hidden=not sys.stderr.isatty()) as bar:
        for pair in bar:
            values_HW, scores_HW, _ = read_pixels(pair, resize=card.num_resized > 0)
            with np.errstate(over="ignore", invalid="ignore"):  # of ignored pixels
                halves_HW = (-scores_HW if card.lower_is_anomalous else scores_HW).astype(np.float16)
            found.append(
                component_overlaps(
                    card.roles.is_anomalous(values_HW),
                    halves_HW >= threshold,
                    is_ignored_HW=card.roles.is_ignored(values_HW),
                )
            )
    return component_metrics(found)


def _lines(
    card: Card, scores: dict[str, Measured], best: BestF1, components: ComponentMetrics | None
) -> Iterator[str]:
    """The protocol above each table, so that a line can be quoted with it."""
    from raydet.metrics.anomaly_records import IMAGE_METRICS, POOLED
    from raydet.stats.measured import RESAMPLES

    num_counted = card.num_anomalous + card.num_normal
    yield (
        f"{card.num_images:,} images, {_sizes(card)}; {num_counted:,} pixels, {card.num_ignored:,} more ignored "
        f"({_listed(card.roles.ignored) or 'no value'})"
    )
    yield (
        f"anomalous: value {_listed(card.roles.anomalous)}, {100 * card.prevalence:.4f} % of the pixels (the AP of "
        f"a constant map); normal: {_listed(card.normal_values)}"
    )
    yield f"{'lower' if card.lower_is_anomalous else 'higher'} scores are more anomalous"
    if card.num_groups > 1:
        kind = "images" if card.group_by == "image" else "directories"
        yield f"95 % intervals in brackets: {RESAMPLES} sets resampled from {card.num_groups:,} {kind}"
    else:
        yield "no intervals: all images are of one group; with --groups image, each is one for itself"
    width = max(map(len, scores))
    yield f"\npooled: all pixels are one set, scores in float16 ({card.num_scores:,} distinct ones)"
    yield from _table(scores, POOLED, width)
    threshold, direction = _own_scale(best.threshold, card), "down" if card.lower_is_anomalous else "up"
    called = f"scores from {threshold:g} {direction}"
    yield f"{'best_F1':{width}}  {best.f1:.4f}  {called}; chosen on these pixels: optimistic"
    yield (
        f"\nper image: means over the {card.num_mixed:,} of {card.num_images:,} images with pixels of both kinds, "
        "scores as in the files"
    )
    yield from _table(scores, IMAGE_METRICS, width)
    if components is not None:
        yield f"\ncomponents of all images, {called} (as for best_F1: optimistic)"
        for name, value in _component_scores(components).items():
            yield f"{name:{width}}  {'undefined' if value is None else f'{value:.4f}'}"


def _table(scores: dict[str, Measured], names: Iterable[str], width: int) -> Iterator[str]:
    for name in names:
        score = scores[name]
        ends = "" if score.interval is None else "  [{:.4f}, {:.4f}]".format(*score.interval)
        yield f"{name:{width}}  {'undefined' if math.isnan(score.value) else f'{score.value:.4f}'}{ends}"


def _as_json(
    card: Card, scores: dict[str, Measured], best: BestF1, components: ComponentMetrics | None
) -> dict[str, object]:
    """What `_lines` says; null for undefined and for infinite numbers."""
    from raydet.stats.measured import RESAMPLES

    return {
        "protocol": {
            "images": card.num_images,
            "mixed_images": card.num_mixed,
            "resized_images": card.num_resized,
            "sizes_hw": [list(size_hw) for size_hw in card.sizes_hw],
            "anomaly": card.roles.anomalous,
            "ignore": card.roles.ignored,
            "normal": card.normal_values,
            "normal_pixels": card.num_normal,
            "anomalous_pixels": card.num_anomalous,
            "ignored_pixels": card.num_ignored,
            "prevalence": card.prevalence,
            "lower_is_anomalous": card.lower_is_anomalous,
            "pooled_precision": "float16",
            "distinct_scores": card.num_scores,
            "group_by": card.group_by,
            "groups": card.num_groups,
            "resamples": RESAMPLES if card.num_groups > 1 else 0,
        },
        "metrics": {name: _number(score.value) for name, score in scores.items()},
        "intervals": {name: score.interval for name, score in scores.items()},
        "best_F1": {"value": best.f1, "threshold": _number(_own_scale(best.threshold, card))},
        "components": None if components is None else _component_scores(components),
    }


def _component_scores(found: ComponentMetrics) -> dict[str, float | None]:
    values = {"sIoU": found.mean_siou, "PPV": found.mean_ppv, "mean_F1": found.mean_f1}
    return {name: _number(value) for name, value in values.items()}


def _own_scale(threshold: float, card: Card) -> float:
    """A threshold of the scores in the files."""
    return 0.0 - threshold if card.lower_is_anomalous else threshold


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sizes(card: Card) -> str:
    first, last = (f"{width} x {height}" for height, width in (card.sizes_hw[0], card.sizes_hw[-1]))
    size = first if len(card.sizes_hw) == 1 else f"{len(card.sizes_hw)} sizes from {first} to {last}"
    return f"{size}, {f'{card.num_resized:,} maps resized to it' if card.num_resized else 'no map resized'}"


def _listed(values: Sequence[int]) -> str:
    """
    >>> _listed([1, 14])
    '1, 14'
    """
    more = f" and {len(values) - SHOWN_VALUES} more" if len(values) > SHOWN_VALUES else ""
    return ", ".join(map(str, values[:SHOWN_VALUES])) + more
