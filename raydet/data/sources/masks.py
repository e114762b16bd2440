"""Images with masks, whose values `classes.yaml` names.

    images/a.png   masks/a.png   classes.yaml

The files are found by `raydet.data.sources.mask_files`, or in the way of a certain set. A mask has the size of its
image, and one channel (ids of up to 16 bits, or a palette, of which the indices count) or the colours of
`classes.yaml`. Labels are those of `classes.yaml` in the order of its ids; a value that it does not name is an error.

**Orientation.** Images are read upright, as everywhere. A mask is read upright by its own metadata, if it has any, and
belongs to the upright image, like boxes: one that was drawn on the stored pixels of an image that lies on its side has
another size and is refused. Where the sizes cannot tell (upside down, mirrored, square), a note says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.sources.bad_samples import BadSamples
from raydet.data.sources.base import Targets
from raydet.data.sources.files import Root
from raydet.data.sources.images import (
    MODALITY_NAMES,
    ThermalRange,
    check_sizes,
    decode_rgbt,
    decode_values,
    read_header,
    read_mask_header,
)
from raydet.data.sources.mask_files import MASK, RGBT, MaskFiles
from raydet.data.sources.mask_layouts import CLASSES
from raydet.data.sources.paired_images import Image, PairedImages, check_some_left
from raydet.errors import DataError
from raydet.files.classes import MAX_VALUE, ClassTable, Colour, Unlabelled, built_in_tables, read_classes
from raydet.files.text import one_line
from raydet.structures import ANOMALY, IGNORE, Mask

UNKNOWN = -1
NUM_SAMPLED = 5
"""Masks whose values are told where there is no classes.yaml."""
NUM_SHOWN = 12


class MaskSet(PairedImages):
    """The images of such a set.

    Args:
        root: the set's directory.
        files: of each image, by its id.
        table: name of a built-in table, or path of a file of classes, see `raydet.files.classes`.
        classes: names in label order; default: those of the table.
        missing: modalities to leave out.
        thermal_range: see `raydet.data.sources.images`.
        is_labelled: False: masks are not read, and may be missing; every pixel has no label.
        bad_samples: the images that were left out; those with a bad file follow.

    Raises:
        DataError: there is no image, or a file is not as described above.
    """

    def __init__(
        self,
        root: Root,
        files: Mapping[str, MaskFiles],
        *,
        table: str = CLASSES,
        classes: Sequence[str] | None = None,
        missing: Collection[str] = (),
        thermal_range: ThermalRange | None = None,
        is_labelled: bool = True,
        bad_samples: BadSamples,
    ) -> None:
        check_some_left(len(files), root.path, bad_samples)
        kinds = next(iter(files.values())).paths.keys()
        modalities = [name for name in MODALITY_NAMES if name in kinds or (RGBT in kinds and name != "event")]
        modalities = [name for name in modalities if name not in missing]
        masks = [each.paths[MASK] for each in files.values() if is_labelled]
        known = _table_of(root, table, masks) if is_labelled or classes is None else None
        if known is not None and classes is not None:
            known = known.in_order(classes)
        self.levels = () if known is None else known.levels
        self.colours: tuple[Colour | None, ...] = () if known is None else known.colours
        self._labels = None if known is None else _Labels(known)
        unclear: list[str] = []

        def read_image(key: str) -> Image:
            where, paths = f"{root.path}, image {key}", files[key].paths
            pixels = {name: paths.get(name, paths.get(RGBT, root.path)) for name in modalities}
            size_hw = check_sizes(pixels, where, thermal_range=thermal_range)
            if RGBT in paths and read_header(paths[RGBT], where).channels != 4:
                raise DataError(
                    f"{paths[RGBT]}: expected 4 channels (red, green, blue, thermal) as data.source.rgbt says, got "
                    f"{read_header(paths[RGBT], where).channels}; name the directory as rgb"
                )
            if is_labelled and _check_mask(paths[MASK], pixels, size_hw, where):
                unclear.append(key)
            return Image(key, files[key].group_id, pixels, size_hw, mask=paths.get(MASK))

        images = bad_samples.read_all((key, partial(read_image, key)) for key in files)
        super().__init__(
            images,
            where=root.path,
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
        """The mask of an image: uint8, 0..K-1, IGNORE or ANOMALY.

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
            self._label_of_value[value] = _stored(label)

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
        labels = np.array([_stored(label) for label in label_of_colour.values()], np.int16)
        order = np.argsort(known)
        codes_HW = (colours_HW3.astype(np.int64) @ packed)[..., 0]
        place_HW = np.searchsorted(known[order], codes_HW).clip(max=len(known) - 1)
        is_known_HW = known[order][place_HW] == codes_HW
        return np.where(is_known_HW, labels[order][place_HW], np.int16(UNKNOWN))


def _stored(label: int | Unlabelled) -> int:
    return {"ignored": IGNORE, "anomaly": ANOMALY}[label] if isinstance(label, str) else label


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
