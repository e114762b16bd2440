"""Build sources from their configs: with `build_files`, the only module that knows both."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, assert_never, get_args

from raydet.config import (
    CocoSource,
    DataConfig,
    DetectionTask,
    EventRecordingsSource,
    Experiment,
    FlirSource,
    KaistSource,
    Level,
    MasksSource,
    Modality,
    NamedSplit,
    NpyYoloSource,
    SegmentationTask,
    ShardsSource,
    SilentSource,
    StrangeSource,
    StreetHazardsSource,
    SwarmSource,
    SyntheticSource,
    TreeSource,
    VocSource,
    YoloSource,
)
from raydet.data.build_files import image_directories, named_only, open_files
from raydet.data.layouts import SourceConfig, detect_source
from raydet.data.silent import SilentSet
from raydet.data.sources.bad_samples import BadSamples, LeftOut, OnBad
from raydet.data.sources.base import Source
from raydet.data.sources.event_recordings import EventRecordings, WindowSettings
from raydet.data.sources.files import Root
from raydet.data.sources.mask_files import MASK, files_in_directories
from raydet.data.sources.masks import MaskSet
from raydet.data.sources.npy_yolo import NpyYoloSet
from raydet.data.sources.simulated import SimulatedEvents
from raydet.data.sources.streethazards import street_hazards_files
from raydet.data.sources.wrapped import unwrapped
from raydet.data.sources.yolo import find_images
from raydet.data.sources.yolo_rows import read_class_names
from raydet.data.split import parts_of_ids
from raydet.data.strange import StrangeSet
from raydet.data.swarm import SwarmSet
from raydet.data.synthetic import SyntheticSet
from raydet.data.tree import TreeSet
from raydet.errors import ConfigError
from raydet.files.classes import Colour
from raydet.ops.colours import class_colours

if TYPE_CHECKING:
    from raydet.data.shards.reader import ShardSet

logger = logging.getLogger("raydet")

__all__ = [
    "SourceConfig",
    "adopt_source",
    "colours_of",
    "data_hashes",
    "detect_source",
    "ignored_in",
    "left_out_of",
    "levels_of",
    "notes_on",
    "open_source",
    "palette_of",
]


def open_source(config: DataConfig, *, on_bad: OnBad = "error", is_labelled: bool = True) -> Source:
    """Open and check the images of a run.

    Args:
        on_bad: "skip" leaves out bad images, see `left_out_of`; errors that only show in pixels are raised by `read`.
        is_labelled: False: annotations are not read, and may be missing; every target is empty.

    Raises:
        DataError: the data are bad.
        ConfigError: the config and the data contradict each other.
    """
    source = _with_simulated_events(config, on_bad, is_labelled)
    if source.classes != config.classes:
        raise ConfigError(
            f"data.classes is [{', '.join(config.classes)}], the annotations name [{', '.join(source.classes)}]; set "
            "data.classes to the latter (--data does so automatically)"
        )
    if not source.modalities:
        raise ConfigError(f"data.missing names every modality ({', '.join(config.missing)}); remove one")
    return source


def adopt_source(
    experiment: Experiment,
    source_config: SourceConfig,
    *,
    classes: tuple[str, ...] | None = None,
    is_labelled: bool = True,
    on_bad: OnBad = "error",
    any_task: bool = False,
) -> Experiment:
    """The experiment on another source, with that source's classes and missing modalities written to its config. For a
    set with masks also its class tree (`task.levels`) and, if it comes in parts to train and to validate, these
    (`data.split`).

    Classes come from the annotations (in the order of a COCO json's ids, of `classes.txt`, or alphabetical), or for
    `npy_yolo` and `yolo` from `classes.txt` if it exists. Missing modalities are those without files; an empty channel
    of `npy_yolo` cannot be told from a missing one, so there `data.missing` is kept. The synthetic set draws the
    experiment's classes. Shards record all of this, and are pinned by their hash.

    Args:
        classes: names in label order, where they are known, e.g. those of a trained run: the set may lack objects of
            some, and must not have objects of others. `task.levels` and `data.split` are kept.
        is_labelled: False: annotations are not read, and may be missing.
        any_task: only the data of the experiment are of interest, whatever its task is.

    Raises:
        DataError: the source cannot be read.
        ConfigError: the set has masks and the task needs boxes, or the other way round.
    """
    levels: tuple[Level, ...] = ()
    image_ids: Sequence[str] = ()
    has_masks = isinstance(source_config, MasksSource | StreetHazardsSource | TreeSource | StrangeSource)
    known, missing = classes, experiment.data.missing
    classes = known or experiment.data.classes
    match source_config:
        case SyntheticSource():
            pass
        case NpyYoloSource():
            classes = read_class_names(Path(source_config.root)) or classes
        case YoloSource():
            root = Path(source_config.root)
            classes = read_class_names(root) or classes
            missing = _all_but(find_images(root) | image_directories(source_config))
        case CocoSource() | VocSource() | FlirSource() | KaistSource():
            opened = open_files(
                source_config, classes=known, missing=(), on_bad=on_bad, is_labelled=is_labelled
            )
            classes, missing = opened.classes, _all_but(opened.modalities)
        case MasksSource() | StreetHazardsSource():
            masks = _open_masks(
                source_config, classes=known, missing=(), on_bad=on_bad, is_labelled=is_labelled
            )
            classes, levels, missing = masks.classes, masks.levels, _all_but(masks.modalities)
            image_ids = masks.image_ids
        case TreeSource() | StrangeSource():
            tree = _open_tree(source_config)
            classes, levels, missing = tree.classes, tree.levels, _all_but(tree.modalities)
            image_ids = tree.image_ids
        case SilentSource() | SwarmSource():
            windows = _open_windows(source_config)
            classes, missing = windows.classes, _all_but(windows.modalities)
        case EventRecordingsSource():
            recordings = _open_recordings(source_config, on_bad=on_bad, is_labelled=is_labelled)
            classes, missing = known or recordings.classes, _all_but(recordings.modalities)
            image_ids = recordings.image_ids
        case ShardsSource():
            shards = _open_shards(source_config)
            recorded = {"sha256": shards.manifest.sha256, "simulated": shards.manifest.simulated}
            source_config = source_config.model_copy(update=recorded)
            classes, missing = shards.classes, _all_but(shards.modalities)
            levels, has_masks = shards.manifest.levels, shards.manifest.target == "masks"
            image_ids = shards.image_ids if has_masks else ()
        case unreachable:
            assert_never(unreachable)
    if not any_task:
        _check_target(experiment, source_config, has_masks)
    missing = tuple(name for name in missing if name not in experiment.data.simulated)
    data = experiment.data.model_copy(
        update={"source": source_config, "classes": classes, "missing": missing}
    )
    if known is None:  # otherwise all images are of interest, not a part
        data = _with_own_split(data, image_ids)
    if isinstance(experiment.task, SegmentationTask) and known is None:
        task = experiment.task.model_copy(update={"levels": levels})
        return experiment.model_copy(update={"data": data, "task": task})
    return experiment.model_copy(update={"data": data})


def _with_own_split(data: DataConfig, image_ids: Sequence[str]) -> DataConfig:
    """The split that a set has itself, if images of it are there to train and to validate."""
    parts = parts_of_ids(image_ids)
    if {"train", "val"} <= parts:
        return data.model_copy(update={"split": NamedSplit()})
    if len(parts) > 1:
        logger.warning(
            "The set comes as %s, without images to validate on: data.split (%s) mixes them. Take one part "
            '(--data \'...?splits=["train"]\'), or validate on another (--set \'data.split={"kind": "named", '
            '"val": ["test"], "test": []}\')',
            " and ".join(sorted(parts)),
            data.split.kind,
        )
    return data


def _check_target(experiment: Experiment, source: SourceConfig, has_masks: bool) -> None:
    """Refuse a set whose targets are not those of the task."""
    if has_masks and isinstance(experiment.task, DetectionTask):
        raise ConfigError(
            f"--data: the {source.kind} set has masks, {experiment.name} needs boxes; choose a recipe for masks "
            "(--recipe seg_demo, seg_mit_b0_extremely_fast) or a set with boxes"
        )
    if not has_masks and isinstance(experiment.task, SegmentationTask):
        raise ConfigError(
            f"--data: the {source.kind} set has boxes, {experiment.name} needs masks; choose a set with masks "
            "(masks:PATH, tree) or a recipe for boxes (--recipe demo)"
        )


def left_out_of(source: Source) -> list[LeftOut]:
    """The images that a source left out when it was opened."""
    return list(getattr(unwrapped(source), "left_out", ()))


def ignored_in(source: Source) -> Mapping[str, int]:
    """Number of objects that are left out of a source by a rule, such as iscrowd, by rule."""
    return dict(getattr(unwrapped(source), "ignored", {}))


def notes_on(source: Source) -> tuple[str, ...]:
    """How a source was understood where that is not plain, as sentences for its user."""
    return tuple(getattr(unwrapped(source), "notes", ()))


def levels_of(source: Source) -> tuple[Level, ...]:
    """The class tree of a set with masks, see `raydet.config.SegmentationTask`; (): none."""
    return tuple(getattr(unwrapped(source), "levels", ()))


def colours_of(source: Source) -> tuple[Colour | None, ...]:
    """The colour of each class, by label; () or None where the set has none."""
    return tuple(getattr(unwrapped(source), "colours", ()))


def palette_of(source: Source) -> tuple[Colour, ...]:
    """RGB of each class, 0..255, for drawings: the set's, where it has one, else our own."""
    own = class_colours(len(source.classes))
    return tuple(found or default for found, default in zip(colours_of(source) or own, own, strict=True))


def data_hashes(source: Source) -> dict[str, str] | None:
    """Hashes of shards: `sha256` of the files, `content_sha256` of the data in them, whatever the encoding.

    None: the source was not converted to shards, so its files may change unnoticed.
    """
    manifest = getattr(unwrapped(source), "manifest", None)
    if manifest is None:
        return None
    return {"sha256": manifest.sha256, "content_sha256": manifest.content_sha256}


def _with_simulated_events(config: DataConfig, on_bad: OnBad, is_labelled: bool) -> Source:
    """The source of the config, with events simulated from RGB if `data.simulate_events` is set."""
    settings = config.simulate_events
    if settings is None:
        return _open(config, on_bad, is_labelled)
    if settings.replaces_own:
        config = config.model_copy(update={"missing": (*config.missing, "event")})
    source = _open(config, on_bad, is_labelled)
    if "event" in source.modalities:
        raise ConfigError(
            f"data.simulate_events: the {config.source.kind} source has events already; set data.simulate_events=null, "
            'or data.simulate_events={"replaces_own": true} to replace its own'
        )
    if "rgb" not in source.modalities:
        raise ConfigError(
            f"data.simulate_events needs rgb, the {config.source.kind} source has "
            f"{', '.join(source.modalities) or 'nothing'}; set data.simulate_events=null"
        )
    return SimulatedEvents(source, settings)


def _open(config: DataConfig, on_bad: OnBad, is_labelled: bool) -> Source:
    match config.source:
        case SyntheticSource() as source:
            return SyntheticSet(
                num_sequences=source.num_sequences,
                frames_per_sequence=source.frames_per_sequence,
                size_hw=source.size_hw,
                classes=config.classes,
                seed=source.seed,
                missing=config.missing,
            )
        case NpyYoloSource() as source:
            return NpyYoloSet(
                source.root,
                classes=config.classes,
                missing=config.missing,
                unlabelled=source.unlabelled,
                is_labelled=is_labelled,
                links_into=source.follow_links,
                on_bad=on_bad,
            )
        case (MasksSource() | StreetHazardsSource()) as source:
            return _open_masks(
                source,
                classes=config.classes,
                missing=config.missing,
                on_bad=on_bad,
                is_labelled=is_labelled,
            )
        case (TreeSource() | StrangeSource()) as source:
            return _open_tree(source, config.missing)
        case (SilentSource() | SwarmSource()) as source:
            return _open_windows(source, config.missing)
        case EventRecordingsSource() as source:
            return _open_recordings(source, missing=config.missing, on_bad=on_bad, is_labelled=is_labelled)
        case ShardsSource() as source:
            shards = _open_shards(source, config.missing)
            if shards.manifest.simulated != source.simulated:
                raise ConfigError(
                    f"data.source.simulated must be {list(shards.manifest.simulated)}, as in the manifest of "
                    f"{source.path}, got {list(source.simulated)}; correct it (--data does so automatically)"
                )
            return shards
        case source:
            return open_files(
                source,
                classes=config.classes,
                missing=config.missing,
                on_bad=on_bad,
                is_labelled=is_labelled,
            )


def _open_masks(
    source: MasksSource | StreetHazardsSource,
    *,
    classes: Sequence[str] | None,
    missing: Collection[str],
    on_bad: OnBad,
    is_labelled: bool,
) -> MaskSet:
    """A set with masks; without `classes`, those of its classes.yaml."""
    root, bad_samples = Root(Path(source.root), source.follow_links), BadSamples(on_bad)
    match source:
        case MasksSource():
            masks = source.masks if is_labelled else None
            directories = named_only(
                rgb=source.rgb, thermal=source.thermal, event=source.event, rgbt=source.rgbt, mask=masks
            )
            suffixes = {
                "rgb": source.rgb_suffix,
                "rgbt": source.rgb_suffix,
                "thermal": source.thermal_suffix,
                "event": source.event_suffix,
                MASK: source.mask_suffix,
            }
            files = files_in_directories(
                root,
                {kind: directory for kind, directory in directories.items() if kind not in missing},
                suffixes=suffixes,
                splits=source.splits,
                group_prefix=source.group_prefix,
                bad_samples=bad_samples,
            )
        case StreetHazardsSource():
            files = street_hazards_files(root, source.lists, is_labelled=is_labelled, bad_samples=bad_samples)
    return MaskSet(
        root,
        files,
        table=source.classes,
        classes=classes,
        missing=missing,
        thermal_range=source.thermal_range,
        is_labelled=is_labelled,
        bad_samples=bad_samples,
    )


def _open_tree(source: TreeSource | StrangeSource, missing: Collection[str] = ()) -> TreeSet:
    if isinstance(source, StrangeSource):
        sizes = (source.num_train, source.num_val, source.num_calibration, source.num_test)
        return StrangeSet(sizes, seed=source.seed, missing=missing)
    return TreeSet(
        num_images=source.num_images, has_thermal=source.thermal, seed=source.seed, missing=missing
    )


def _open_recordings(
    source: EventRecordingsSource,
    *,
    missing: Collection[str] = (),
    on_bad: OnBad = "error",
    is_labelled: bool = True,
) -> EventRecordings:
    settings = WindowSettings(
        window_us=1000 * source.window_ms,
        bins=source.bins,
        clip=source.clip,
        halving=source.halving,
        first_label_us=1000 * source.first_label_ms,
        label_gap_us=1000 * source.label_gap_ms,
        label_tolerance_us=1000 * source.label_tolerance_ms,
        min_side_px=source.min_side_px,
    )
    return EventRecordings(
        source.root,
        settings,
        classes=source.class_names,
        size_hw=source.size_hw,
        missing=missing,
        is_labelled=is_labelled,
        links_into=source.follow_links,
        on_bad=on_bad,
    )


def _open_windows(source: SilentSource | SwarmSource, missing: Collection[str] = ()) -> SilentSet:
    opened = SwarmSet if isinstance(source, SwarmSource) else SilentSet
    return opened(num_sequences=source.num_sequences, seed=source.seed, missing=missing)


def _open_shards(source: ShardsSource, missing: Collection[str] = ()) -> ShardSet:
    from raydet.data.shards.reader import ShardSet  # imported late, because Arrow is large

    return ShardSet(source.path, sha256=source.sha256, missing=missing)


def _all_but(modalities: Collection[str]) -> tuple[Modality, ...]:
    return tuple(name for name in get_args(Modality) if name not in modalities)
