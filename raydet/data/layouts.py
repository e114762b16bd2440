"""Parse `--data`: a format and a path, or a path whose layout identifies the format.

    coco:PATH    voc:PATH    yolo:PATH?labels=fused    kaist:PATH?subset=train.txt&thermal_range=[7000,9000]

Fields of the source's config may follow a question mark, which must be quoted in a shell.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from raydet.config import (
    CocoSource,
    EventRecordingsSource,
    FlirSource,
    KaistSource,
    MasksSource,
    NpyYoloSource,
    ShardsSource,
    SilentSource,
    Source,
    StrangeSource,
    StreetHazardsSource,
    SwarmSource,
    SyntheticSource,
    TreeSource,
    VocSource,
    YoloSource,
)
from raydet.config.base import describe
from raydet.data.shards.manifest import MANIFEST
from raydet.data.sources.kaist import sets_directory
from raydet.data.sources.mask_layouts import find_layout
from raydet.data.sources.streethazards import is_street_hazards
from raydet.data.sources.yolo import SETS_OF, find_images, find_labels
from raydet.errors import ConfigError, DataError

SourceConfig = (
    SyntheticSource
    | NpyYoloSource
    | CocoSource
    | VocSource
    | YoloSource
    | FlirSource
    | KaistSource
    | MasksSource
    | StreetHazardsSource
    | TreeSource
    | StrangeSource
    | SilentSource
    | SwarmSource
    | EventRecordingsSource
    | ShardsSource
)

ANNOTATIONS = "annotations.json"
KINDS = tuple(member.model_fields["kind"].default for member in get_args(SourceConfig))
MADE_KINDS = ("synthetic", "tree", "strange", "silent", "swarm")
"""Sets that have no files."""
FILE_KINDS = tuple(kind for kind in KINDS if kind not in MADE_KINDS)
SPEC_FORMS = f"{', '.join(MADE_KINDS)}, FORMAT:PATH ({', '.join(FILE_KINDS)}), shards:URI, or a path"


def detect_source(spec: str, *, is_labelled: bool = True) -> SourceConfig:
    """The source config for the value of `--data`.

    Args:
        is_labelled: False: labels may be missing.

    >>> detect_source("synthetic").kind
    'synthetic'

    Raises:
        ConfigError: the value is malformed, a setting is wrong, or a directory fits no format, or several.
        DataError: the path does not exist, or lacks files of the format.
    """
    text, settings = _split_settings(spec)
    kind, _, rest = text.partition(":")
    if text in MADE_KINDS:
        return _validated({"kind": text} | settings, spec)
    if kind == "shards" and "://" in rest:
        return _validated({"kind": kind, "path": rest} | settings, spec)
    if kind in FILE_KINDS and rest:
        return _configured(kind, _existing(rest), settings, spec, is_labelled)
    if not text or (":" in text and not Path(text).exists()):
        raise ConfigError(f"--data must be {SPEC_FORMS}, got {spec!r}")
    path = _existing(text)
    return _configured(_kind_of(path, is_labelled), path, settings, spec, is_labelled)


def _split_settings(spec: str) -> tuple[str, dict[str, object]]:
    """The part before the settings, and the settings. A question mark may also be part of the path: the longest path
    that exists is taken."""
    marks = [position for position, char in enumerate(spec) if char == "?"]
    ends = [len(spec), *reversed(marks)]
    paths = {end: {spec[:end], spec[:end].partition(":")[2]} - {""} for end in ends}
    end = next(
        (end for end in ends if any(os.path.exists(os.path.expanduser(path)) for path in paths[end])), None
    )
    if end is None:
        end = marks[0] if marks else len(spec)
    if end == len(spec):
        return spec, {}
    text, tail = spec[:end], spec[end + 1 :]
    settings = {}
    for part in re.split(r"&(?=\w+=)", tail):  # a value may have an ampersand
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ConfigError(f"--data expects key=value after the question mark, got {part!r} in {spec!r}")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return text, settings


def _existing(text: str) -> Path:
    # Absolute, because workers run in other directories; links are kept, because they are what the user mounted.
    path = Path(os.path.abspath(Path(text).expanduser()))
    if path.exists():
        return path
    raise DataError(f"--data must be {SPEC_FORMS}; {path} does not exist, check the path")


def _kind_of(path: Path, is_labelled: bool) -> str:
    """The format whose layout a path has."""
    if path.suffix == ".json" or (path / ANNOTATIONS).is_file():
        return "coco"
    if (path / MANIFEST).is_file():
        return "shards"
    if is_street_hazards(path):
        return "streethazards"
    has_masks = find_layout(path) is not None
    has = {name: (path / name).is_dir() for name in ("Annotations", "JPEGImages", "visible", "infrared")}
    fits = {
        "voc": has["Annotations"] and has["visible"] and has["infrared"],
        "flir": has["Annotations"] and has["JPEGImages"],
        "kaist": sets_directory(path) is not None,
        "yolo": not has_masks and bool(find_images(path)) and (bool(find_labels(path)) or not is_labelled),
        "masks": has_masks,
    }
    fitting = [kind for kind, is_fitting in fits.items() if is_fitting]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(
            f"--data {path}: fits several formats ({', '.join(fitting)}); name one, for example {fitting[0]}:{path}"
        )
    if (path / "images").is_dir():
        return "npy_yolo"
    raise ConfigError(
        f"--data {path}: expected a .json file or a directory with {ANNOTATIONS} (coco), {MANIFEST} (shards), images/ "
        "and labels/ (npy_yolo), visible/, infrared/ and Annotations/ (voc), images and labels per modality "
        "(yolo), JPEGImages/ and Annotations/ (flir), set00/ (kaist), train/images/training/ (streethazards) or "
        "images/ and masks/ (masks), found none of them; name the format, for example coco:PATH"
    )


def _configured(
    kind: str, path: Path, settings: Mapping[str, Any], spec: str, is_labelled: bool
) -> SourceConfig:
    fields: dict[str, object] = {"root": str(path)}
    match kind:
        case "coco":
            fields = {"annotations": str(path / ANNOTATIONS if path.is_dir() else path)}
            if isinstance(settings.get("root"), str):
                settings = {**settings, "root": str(_existing(settings["root"]))}
        case "masks" | "streethazards":
            fields |= _mask_fields(path, settings, is_labelled) if kind == "masks" else {}
            if isinstance(settings.get("classes"), str) and os.path.isfile(settings["classes"]):
                settings = {**settings, "classes": os.path.abspath(settings["classes"])}
        case "shards":
            fields = {"path": str(path)}
        case "npy_yolo":
            for name in ("images", "labels") if is_labelled else ("images",):
                if not (path / name).is_dir():
                    raise DataError(
                        f"--data {path}: npy_yolo needs the directories images/ and labels/, {name}/ does not exist"
                    )
        case "yolo" if "labels" not in settings:
            fields["labels"] = _only_policy(path) if is_labelled else "fused"
    if isinstance(settings.get("follow_links"), str):
        settings = {**settings, "follow_links": str(_existing(settings["follow_links"]))}
    return _validated({"kind": kind} | fields | dict(settings), spec)


def _mask_fields(path: Path, settings: Mapping[str, Any], is_labelled: bool) -> dict[str, object]:
    """The directories of a set with masks, unless the settings name them."""
    if {"rgb", "thermal", "event", "rgbt"} & settings.keys():
        return {}
    found = find_layout(path, is_labelled=is_labelled)
    if found is None:
        raise ConfigError(
            f"--data {path}: masks needs directories of images and of masks: images/ and masks/, rgb/, thermal/ and "
            "labels/, train/ and trainannot/ (CamVid), leftImg8bit/ and gtFine/ (Cityscapes), images/training/ and "
            "annotations/training/ (ADE20K), found none of them; name them, for example "
            "'masks:PATH?rgb=colour&masks=ground_truth'"
        )
    return found


def _validated(tree: Mapping[str, Any], spec: str) -> SourceConfig:
    adapter: TypeAdapter[SourceConfig] = TypeAdapter(Source)
    try:
        return adapter.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"--data {spec}: {describe(error)}") from None


def _only_policy(path: Path) -> str:
    """The label policy of a directory that allows only one."""
    found = find_labels(path)
    possible = [policy for policy, sets in SETS_OF.items() if all(name in found for name in sets)]
    if len(possible) == 1:
        return possible[0]
    if not possible:
        raise DataError(
            f"--data {path}: yolo needs label directories (labels_vi/, labels_ir/, labels_fusion/, or labels/), found "
            "none; name them, for example yolo:PATH?labels=rgb&labels_rgb=boxes"
        )
    raise ConfigError(
        f"--data {path}: has several label sets ({', '.join(found)}); choose the labels to use: "
        + ", ".join(f"'yolo:{path}?labels={policy}'" for policy in possible)
    )
