"""From configs to sources: the only place where they meet, and what `--data` understands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import assert_never, get_args

from raydet.config import (
    CocoSource,
    DataConfig,
    Experiment,
    Modality,
    NpyYoloSource,
    SyntheticSource,
)
from raydet.data.sources.base import Source
from raydet.data.sources.coco import CocoSet
from raydet.data.sources.npy_yolo import NpyYoloSet, read_class_names
from raydet.data.sources.sieve import LeftOut, OnBad
from raydet.data.synthetic import SyntheticSet
from raydet.errors import ConfigError, DataError

SourceConfig = SyntheticSource | NpyYoloSource | CocoSource

SPEC_FORMS = "synthetic, coco:PATH, npy_yolo:PATH, or a path"
ANNOTATIONS = "annotations.json"


def open_source(config: DataConfig, *, on_bad: OnBad = "error") -> Source:
    """Open and check the pictures of a run.

    Args:
        on_bad: what becomes of a bad picture, in sources that can leave one out.

    Raises:
        DataError: the data are bad.
        ConfigError: the config and the data contradict each other.
    """
    source = _open(config)
    if source.classes != config.classes:
        raise ConfigError(
            f"data.classes wants {_listed(config.classes)}, the annotations name {_listed(source.classes)}; set "
            "data.classes to the latter (--data does it by itself)"
        )
    if not source.modalities:
        raise ConfigError(f"data.missing names every modality ({', '.join(config.missing)}); take one out")
    return source


def left_out_of(source: Source) -> list[LeftOut]:
    """Pictures that were left out at opening; none where a source leaves out none."""
    return list(getattr(source, "left_out", []))


def detect_source(spec: str) -> SourceConfig:
    """What a user means by `--data`.

    >>> detect_source("synthetic").kind
    'synthetic'

    Raises:
        ConfigError: the text is no source, or a directory is of no known format.
        DataError: the path does not exist, or lacks `labels/`.
    """
    prefix, _, rest = spec.partition(":")
    match prefix, rest:
        case "synthetic", "":
            return SyntheticSource()
        case "coco", path if path:
            return _coco(_existing(path))
        case "npy_yolo", path if path:
            return _npy_yolo(_existing(path))
        case _ if not spec or (":" in spec and not Path(spec).exists()):
            raise ConfigError(f"--data wants {SPEC_FORMS}, got {spec!r}")
        case _:
            return _detect_format(_existing(spec))


def adopt_source(experiment: Experiment, source_config: SourceConfig) -> Experiment:
    """The experiment on another source, with its classes and its missing modalities, so that the config says all.

    A COCO json brings its categories and tells which modalities it has. `npy_yolo` brings `classes.txt` where there is
    one; nobody can tell an empty channel from a missing one, so `data.missing` stays as it is. The synthetic set
    draws whatever classes the experiment has.

    Raises:
        DataError: the source cannot be read.
    """
    classes, missing = experiment.data.classes, experiment.data.missing
    match source_config:
        case CocoSource():
            opened = CocoSet(source_config.annotations, root=source_config.root)
            classes, missing = opened.classes, _absent(opened)
        case NpyYoloSource():
            classes = read_class_names(Path(source_config.root)) or classes
        case SyntheticSource():
            pass
        case unreachable:
            assert_never(unreachable)
    data = experiment.data.model_copy(
        update={"source": source_config, "classes": classes, "missing": missing}
    )
    return experiment.model_copy(update={"data": data})


def _open(config: DataConfig) -> Source:
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
                source.root, classes=config.classes, missing=config.missing, unlabelled=source.unlabelled
            )
        case CocoSource() as source:
            return CocoSet(source.annotations, root=source.root, missing=config.missing)
        case unreachable:
            assert_never(unreachable)


def _existing(text: str) -> Path:
    # Absolute, because workers run in other directories; links stay, because they are what the user mounted.
    path = Path(os.path.abspath(Path(text).expanduser()))
    if path.exists():
        return path
    raise DataError(f"--data wants {SPEC_FORMS}; {path} does not exist, check the path")


def _detect_format(path: Path) -> SourceConfig:
    if path.suffix == ".json" or (path / ANNOTATIONS).is_file():
        return _coco(path)
    if (path / "images").is_dir():
        return _npy_yolo(path)
    raise ConfigError(
        f"--data {path}: wanted a .json file, a directory with {ANNOTATIONS} (COCO) or one with images/ and labels/ "
        "(npy_yolo), found none of them; name the format, for example coco:PATH"
    )


def _coco(path: Path) -> CocoSource:
    return CocoSource(annotations=str(path / ANNOTATIONS if path.is_dir() else path))


def _npy_yolo(path: Path) -> NpyYoloSource:
    for name in ("images", "labels"):
        if not (path / name).is_dir():
            raise DataError(
                f"--data {path}: npy_yolo wants the directories images/ and labels/, {name}/ is not there"
            )
    return NpyYoloSource(root=str(path))


def _absent(source: Source) -> tuple[Modality, ...]:
    """The known modalities that a source lacks."""
    return tuple(name for name in get_args(Modality) if name not in source.modalities)


def _listed(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(names) + "]"
