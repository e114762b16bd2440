"""A directory of images per modality and one of masks, whose values `classes.yaml` names.

    images/a.png   masks/a.png   classes.yaml

Other layouts are in `raydet.data.sources.mask_layouts`. Directories are searched recursively; files are paired by their
stems without the suffixes of the config. A mask has the size of its image, and one channel (ids of up to 16 bits, or a
palette, of which the indices count) or the colours of `classes.yaml`. Labels are those of `classes.yaml` in the order
of its ids; a value that it does not name is an error.

**Orientation.** Images are read upright, as everywhere. A mask is read upright by its own metadata, if it has any, and
belongs to the upright image, like boxes: one that was drawn on the stored pixels of an image that lies on its side has
another size and is refused. Where the sizes cannot tell (upside down, mirrored, square), a note says so.

**Groups.** The sequence of an image is said by the first letters of its name (`group_prefix`), by a name of Cityscapes
(city and sequence), or else by the subdirectory in which it lies.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.base import Targets
from raydet.data.sources.files import IMAGES, Root, files_in
from raydet.data.sources.images import (
    MODALITY_NAMES,
    ThermalRange,
    check_sizes,
    decode_rgbt,
    decode_values,
    read_header,
    read_mask_header,
)
from raydet.data.sources.mask_layouts import CLASSES, SPLIT, split_names
from raydet.data.sources.paired_images import Image, PairedImages, check_some_left
from raydet.data.sources.pairs import Files, paired
from raydet.errors import ConfigError, DataError
from raydet.files.classes import MAX_VALUE, ClassTable, Colour, built_in_tables, read_classes
from raydet.files.text import one_line
from raydet.structures import IGNORE, Mask

MASK = "mask"
RGBT = "rgbt"
CITYSCAPES_NAME = re.compile(r"([a-z-]+_\d{6})_\d{6}")
UNKNOWN = -1
NUM_SAMPLED = 5
"""Masks whose values are told where there is no classes.yaml."""
NUM_SHOWN = 12


class MaskSet(PairedImages):
    """The images of such a directory, sorted by split and name.

    Args:
        directories: by modality, or "rgbt"; and "mask". One `{split}` in each, or in none.
        suffixes: of stems, by the same keys.
        splits: what `{split}` stands for; None: every name for which all directories exist.
        table: name of a built-in table, or path of a file of classes, see `raydet.files.classes`.
        classes: names in label order; default: those of the table.
        missing: modalities to leave out.
        group_prefix: number of leading characters of a name that identify the sequence.
        thermal_range: see `raydet.data.sources.images`.
        is_labelled: False: masks are not read, and may be missing; every pixel has no label.
        links_into: as in `CocoSet`.
        on_bad: "skip" leaves out an image with a bad or a missing file.

    Raises:
        DataError: a directory or a file is not as described above.
        ConfigError: a name in `splits` does not exist.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        directories: Mapping[str, str],
        suffixes: Mapping[str, str] | None = None,
        splits: Sequence[str] | None = None,
        table: str = CLASSES,
        classes: Sequence[str] | None = None,
        missing: Collection[str] = (),
        group_prefix: int = 0,
        thermal_range: ThermalRange | None = None,
        is_labelled: bool = True,
        links_into: str | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        base, bad_samples = Root(Path(root), links_into), BadSamples(on_bad)
        kinds = [name for name in (*MODALITY_NAMES, RGBT) if name in directories and name not in missing]
        modalities = [name for name in MODALITY_NAMES if name in kinds or (RGBT in kinds and name != "event")]
        modalities = [name for name in modalities if name not in missing]
        kinds += [MASK] if is_labelled else []
        files = _paired_files(
            base, {kind: directories[kind] for kind in kinds}, suffixes or {}, splits, bad_samples
        )
        check_some_left(len(files), base.path, bad_samples)
        masks = [paths[MASK] for paths in files.values() if is_labelled]
        known = _table_of(base, table, masks) if is_labelled or classes is None else None
        if known is not None and classes is not None:
            known = known.in_order(classes)
        self.levels = () if known is None else known.levels
        self.colours: tuple[Colour | None, ...] = () if known is None else known.colours
        self._labels = None if known is None else _Labels(known)
        unclear: list[str] = []

        def read_image(key: str) -> Image:
            where, paths = f"{base.path}, image {key}", files[key]
            pixels = {name: paths.get(name, paths.get(RGBT, base.path)) for name in modalities}
            size_hw = check_sizes(pixels, where, thermal_range=thermal_range)
            if RGBT in paths and read_header(paths[RGBT], where).channels != 4:
                raise DataError(
                    f"{paths[RGBT]}: expected 4 channels (red, green, blue, thermal) as data.source.rgbt says, got "
                    f"{read_header(paths[RGBT], where).channels}; name the directory as rgb"
                )
            if is_labelled and _check_mask(paths[MASK], pixels, size_hw, where):
                unclear.append(key)
            first = next(iter(pixels.values()))
            group = _group_of(key, first, directories, base.path, group_prefix)
            return Image(key, group, pixels, size_hw, mask=paths.get(MASK))

        images = bad_samples.read_all((key, partial(read_image, key)) for key in files)
        super().__init__(
            images,
            where=base.path,
            classes=known.classes if known is not None else classes or (),
            modalities=modalities,
            thermal_range=thermal_range,
            bad_samples=bad_samples,
            notes=_orientation_notes(unclear),
        )
        self._is_rgbt = RGBT in kinds

    def pixels(self, image: Image) -> dict[str, Tensor]:
        if not self._is_rgbt:
            return super().pixels(image)
        rgb, thermal = decode_rgbt(next(path for name, path in image.files.items() if name != "event"))
        events = Image(
            image.image_id, image.group_id, {k: v for k, v in image.files.items() if k == "event"}, (0, 0)
        )
        found = {"rgb": rgb, "thermal": thermal, **super().pixels(events)}
        return {name: found[name] for name in image.files}

    def targets(self, index: int) -> Targets:
        """The mask of an image: uint8, 0..K-1 or IGNORE.

        Raises:
            DataError: the mask cannot be read, or has a value that is not in the table.
        """
        image = self._images[index]
        if image.mask is None:
            return Mask(torch.full(image.size_hw, IGNORE, dtype=torch.uint8)), image.size_hw
        assert self._labels is not None, "a labelled set has a table"
        ids_HW = self._labels.of(image.mask)
        if ids_HW.shape != image.size_hw:
            raise DataError(
                f"{image.mask}: expected {image.size_hw[1]} x {image.size_hw[0]} pixels as at the start, got "
                f"{ids_HW.shape[1]} x {ids_HW.shape[0]}; the file has changed, start again"
            )
        return Mask(torch.from_numpy(ids_HW)), image.size_hw


class _Labels:
    """Reads masks as labels."""

    def __init__(self, table: ClassTable) -> None:
        self._table = table
        self._label_of_value = np.full(MAX_VALUE + 1, UNKNOWN, np.int16)
        for value, label in table.labels.items():
            self._label_of_value[value] = IGNORE if label is None else label

    def of(self, path: Path) -> NDArray[np.uint8]:
        values = decode_values(path)
        if values.ndim == 2:
            if values.size and not 0 <= int(values.min()) <= int(values.max()) <= MAX_VALUE:
                raise DataError(
                    f"{path}: expected values in 0..{MAX_VALUE}, got {values.min()}..{values.max()}; export it again"
                )
            labels_HW = self._label_of_value[values]
        else:
            labels_HW = self._of_colours(values, path)
        if (labels_HW == UNKNOWN).any():
            unknown = _counts(values[labels_HW == UNKNOWN], 3 if values.ndim == 3 else 1)
            raise DataError(
                f"{path}: expected values of {self._table.where}, got {_shown(unknown)}; add them there "
                "(with ignore: true if these pixels have no label), or correct the mask"
            )
        return labels_HW.astype(np.uint8)

    def _of_colours(self, colours_HW3: NDArray[np.integer], path: Path) -> NDArray[np.int16]:
        label_of_colour = self._table.label_of_colour()
        if not label_of_colour:
            raise DataError(
                f"{path}: expected a mask of one channel, got colours, and {self._table.where} has none; give every "
                "class its color: [red, green, blue] there, or export masks of ids"
            )
        packed = np.array([[1 << 16], [1 << 8], [1]])
        known = np.array([list(colour) for colour in label_of_colour]) @ packed[:, 0]
        labels = np.array([IGNORE if x is None else x for x in label_of_colour.values()], np.int16)
        order = np.argsort(known)
        codes_HW = (colours_HW3.astype(np.int64) @ packed)[..., 0]
        place_HW = np.searchsorted(known[order], codes_HW).clip(max=len(known) - 1)
        is_known_HW = known[order][place_HW] == codes_HW
        return np.where(is_known_HW, labels[order][place_HW], np.int16(UNKNOWN))


def _paired_files(
    base: Root,
    directories: Mapping[str, str],
    suffixes: Mapping[str, str],
    splits: Sequence[str] | None,
    bad_samples: BadSamples,
) -> dict[str, dict[str, Path]]:
    """The files of each image by kind; ids are stems, below the name of the split if there are several."""
    templates = list(directories.values())
    has_splits = any(SPLIT in template for template in templates)
    names = split_names(base.path, templates) if has_splits else [""]
    if has_splits and splits is not None:
        if unknown := [name for name in splits if name not in names]:
            raise ConfigError(
                f"data.source.splits: expected some of {', '.join(names) or 'none'}, for which "
                f"{' and '.join(templates)} exist in {base.path}, got {unknown[0]!r}"
            )
        names = list(splits)
    if not names:
        raise DataError(
            f"{base.path}: expected {' and '.join(templates)} for some split, found no name for which all exist; check "
            "the directories"
        )
    files: dict[str, dict[str, Path]] = {}
    for split in names:
        listings: dict[str, Files] = {}
        for kind, template in directories.items():
            found = files_in(base, base.directory(template.replace(SPLIT, split)), IMAGES)
            suffix = suffixes.get(kind, "")
            listings[kind] = {
                stem.removesuffix(suffix): file for stem, file in found.items() if stem.endswith(suffix)
            }
        pairs = paired(
            listings,
            where=base.path / split,
            remedy="add the files or delete the rest of the image; data.source.mask_suffix and its like pair names "
            "that differ",
            bad_samples=bad_samples,
        )
        files |= {f"{split}/{key}" if has_splits else key: paths for key, paths in pairs.items()}
    return files


def _table_of(base: Root, table: str, masks: Sequence[Path]) -> ClassTable:
    """The table of that name or path; a path is relative to the root."""
    path = Path(table) if Path(table).is_absolute() else base.inside(table, "data.source.classes")
    built_in = built_in_tables()
    if table in built_in and not path.is_file():
        return read_classes(built_in[table])
    if path.is_file() or not masks:
        return read_classes(path)
    sampled = [masks[i] for i in np.linspace(0, len(masks) - 1, min(NUM_SAMPLED, len(masks))).astype(int)]
    counts: Counter[tuple[int, ...]] = Counter()
    for mask in sampled:
        values = decode_values(mask)
        counts.update(_counts(values, 3 if values.ndim == 3 else 1))
    known = [list(colour) for colour in sorted(counts)]
    examples = [
        f"{{id: {value[0]}, name: ...}}" if len(value) == 1 else f"{{id: {row}, name: ..., color: {value}}}"
        for row, value in enumerate(known[:2])
    ]
    raise DataError(
        f"{path}: expected a file that names the values of the masks, it does not exist; {len(sampled)} of the masks "
        f"have {_shown(counts)}: write it, one line each, 'classes: [{', '.join(examples)}, ...]', with ignore: true "
        f"for what is no class, or set data.source.classes to another file or a table of raydet ({', '.join(built_in)})"
    )


def _check_mask(mask: Path, pixels: Mapping[str, Path], size_hw: tuple[int, int], where: str) -> bool:
    """Whether sizes cannot tell if the mask fits an image that its metadata turn.

    Raises:
        DataError: the file is no mask, or has another size.
    """
    header = read_mask_header(mask, where)
    images = [read_header(path, where) for path in pixels.values()]
    if header.size_hw != size_hw:
        is_turned = any(image.is_turned for image in images)
        upright = " (turned upright as its metadata say, which the mask must be, too)" if is_turned else ""
        raise DataError(
            f"{where}: expected a mask of the image's size (width x height) {size_hw[1]} x {size_hw[0]}{upright}, got "
            f"{header.size_hw[1]} x {header.size_hw[0]} in {mask}; export it again, without interpolation"
        )
    return any(image.is_moved for image in images) and not header.is_moved


def _orientation_notes(keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    return [
        f"{len(keys)} images (the first is {one_line(keys[0])}) are turned or mirrored by their metadata, their masks "
        "are not: these are taken as drawn on the upright image"
    ]


def _group_of(key: str, path: Path, directories: Mapping[str, str], root: Path, prefix: int) -> str:
    split, _, name = key.rpartition("/")
    if prefix:
        return name[:prefix]
    if found := CITYSCAPES_NAME.match(name):
        return found[1]
    below = next(
        (
            path.parent.relative_to(directory)
            for template in directories.values()
            if path.is_relative_to(directory := root / template.replace(SPLIT, split))
        ),
        Path(),
    )
    return "" if below == Path() else str(below)


def _counts(values: NDArray[np.integer], num_channels: int) -> Counter[tuple[int, ...]]:
    """Number of pixels by value, or by colour."""
    found, counts = np.unique(values.reshape(-1, num_channels), axis=0, return_counts=True)
    return Counter({tuple(row): count for row, count in zip(found.tolist(), counts.tolist(), strict=True)})


def _shown(counts: Counter[tuple[int, ...]]) -> str:
    """
    >>> _shown(Counter({(14,): 3, (15,): 1}))
    'values 14 (3 pixels) and 15 (1 pixel)'
    """
    parts = [
        f"{value[0] if len(value) == 1 else list(value)} ({count:,} pixel{'s' if count > 1 else ''})"
        for value, count in sorted(counts.items())
    ]
    more = [f"{len(parts) - NUM_SHOWN} more"] if len(parts) > NUM_SHOWN else []
    parts = parts[:NUM_SHOWN] + more
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"value{'s' if len(parts) > 1 else ''} {text}"
