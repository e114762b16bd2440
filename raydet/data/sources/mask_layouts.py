"""Layouts of sets with masks that are recognised by their directories.

    Cityscapes   leftImg8bit/train/CITY/*_leftImg8bit.png     gtFine/train/CITY/*_gtFine_labelIds.png
    CamVid       train/*.png                                  trainannot/*.png
    ADE20K       images/training/*.jpg                        annotations/training/*.png
    PST900       train/rgb/*.png   train/thermal/*.png        train/labels/*.png
    MFNet        images/*.png (red, green, blue, thermal)     labels/*.png
    plain        images/*                                     masks/*

and mixtures of the last four: a directory per modality and one of masks, with the parts of a split above, below or not
at all.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from raydet.data.sources.files import IMAGES, directories_in, is_passed_over
from raydet.data.sources.images import decode_rgbt
from raydet.errors import DataError

SPLIT = "{split}"
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing", "calibration")
"""Subdirectories that are taken for parts of a split without being named."""
IMAGE_DIRECTORIES: Mapping[str, tuple[str, ...]] = {
    "rgb": ("rgb", "images", "visible", "vi"),
    "thermal": ("thermal", "infrared", "ir"),
    "event": ("event", "events"),
}
MASK_DIRECTORIES = ("masks", "labels", "annotations", "Segmentation_labels")
FORMS = (f"{SPLIT}/{{}}", f"{{}}/{SPLIT}", "{}")
NAMED_LAYOUTS: tuple[Mapping[str, str], ...] = (
    {
        "rgb": f"leftImg8bit/{SPLIT}",
        "masks": f"gtFine/{SPLIT}",
        "rgb_suffix": "_leftImg8bit",
        "mask_suffix": "_gtFine_labelIds",
        "classes": "cityscapes",
    },
    {"rgb": SPLIT, "masks": f"{SPLIT}annot"},
)
CLASSES = "classes.yaml"

Fields = dict[str, object]
"""Fields of a `raydet.config.MasksSource`."""


def find_layout(root: Path, *, is_labelled: bool = True) -> Fields | None:
    """The directories of a set with masks; None: its layout is not known.

    Args:
        is_labelled: False: there may be no masks.
    """
    layouts = [_labelled_layouts(root)]
    if not is_labelled:
        images = (_images_of(root, form) for form in FORMS)
        layouts.append(_complete(root, directories) for directories in images if directories)
    found = next((fields for fields in itertools.chain(*layouts) if fields is not None), None)
    if found is not None and "classes" in found and (root / CLASSES).is_file():
        del found["classes"]  # the user's own
    return found


def split_names(root: Path, templates: Sequence[str]) -> list[str]:
    """What `{split}` can stand for: names for which all directories exist, sorted."""
    names = [set(_names_for(root, template)) for template in templates]
    return sorted(set.intersection(*names))


def _labelled_layouts(root: Path) -> Iterator[Fields | None]:
    for layout in NAMED_LAYOUTS:
        yield _complete(root, layout)
    for form in FORMS:
        images = _images_of(root, form)
        for name in MASK_DIRECTORIES if images else ():
            yield _complete(root, {**images, "masks": _put(form, name)})


def _put(form: str, name: str) -> str:
    """
    >>> _put("{split}/{}", "masks")
    '{split}/masks'
    """
    return form.replace("{}", name)


def _images_of(root: Path, form: str) -> dict[str, str]:
    """The directory of each modality, with usual names."""
    found = {}
    for modality, names in IMAGE_DIRECTORIES.items():
        templates = (_put(form, name) for name in names)
        name = next((each for each in templates if _is_there(root, each)), None)
        if name is not None:
            found[modality] = name
    return found


def _complete(root: Path, layout: Mapping[str, str]) -> Fields | None:
    """The layout with its splits, if its directories exist and hold images."""
    kinds = [name for name in ("rgb", "thermal", "event", "masks") if name in layout]
    templates = [layout[kind] for kind in kinds]
    fields: Fields = dict(layout)
    splits = [""]
    if any(SPLIT in template for template in templates):
        found = [name for name in split_names(root, templates) if name in SPLIT_NAMES]
        splits = sorted(found, key=SPLIT_NAMES.index)
        if not splits:
            return None
        fields["splits"] = splits
    for template in templates:
        if not any(_first_image(root / template.replace(SPLIT, split)) for split in splits):
            return None
    rgb = layout.get("rgb")
    if rgb is not None and "thermal" not in layout and _is_rgbt(root / rgb.replace(SPLIT, splits[0])):
        fields["rgbt"] = fields.pop("rgb")
    return fields


def _is_there(root: Path, template: str) -> bool:
    names = split_names(root, [template]) if SPLIT in template else [""]
    return any((root / template.replace(SPLIT, name)).is_dir() for name in names)


def _names_for(root: Path, template: str) -> Iterator[str]:
    parts = PurePosixPath(template).parts
    place = next(i for i, part in enumerate(parts) if SPLIT in part)
    before, after = parts[place].split(SPLIT)
    parent = root.joinpath(*parts[:place])
    for name in directories_in(parent) if parent.is_dir() else ():
        split = name.removeprefix(before).removesuffix(after)
        if split and name == before + split + after and (root / template.replace(SPLIT, split)).is_dir():
            yield split


def _first_image(directory: Path) -> Path | None:
    """Any image below a directory."""
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not is_passed_over(name))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGES and not is_passed_over(name):
                return Path(parent, name)
    return None


def _is_rgbt(directory: Path) -> bool:
    """Whether the images have a fourth channel that is more than a constant transparency."""
    path = _first_image(directory)
    try:
        return path is not None and bool(np.ptp(decode_rgbt(path)[1].numpy()) > 0)
    except DataError:
        return False
