"""A directory of images per modality and one Pascal VOC xml per image: the layout of LLVIP.

    visible/[...]/010001.jpg     infrared/[...]/010001.jpg     Annotations/[...]/010001.xml

Directories are searched recursively; files are paired by their stems, which must be unique. All files of an image have
the same size. `difficult` objects count as objects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.files import IMAGES, Root, files_in
from raydet.data.sources.images import MODALITY_NAMES, ThermalRange
from raydet.data.sources.named_boxes import NamedSet
from raydet.data.sources.pairs import paired
from raydet.data.sources.voc_xml import read_voc

DIRECTORIES: Mapping[str, str] = {"rgb": "visible", "thermal": "infrared"}


class VocSet(NamedSet):
    """The images of such a directory, sorted by name.

    Args:
        classes: names in label order; default: `classes.txt`, or else all names in the annotations, sorted.
        missing: modalities to leave out.
        directories: of the images, by modality.
        annotations: directory of the xml files.
        ignore: names of objects to leave out.
        first_pixel, group_prefix: see `raydet.config.VocSource`.
        thermal_range: see `raydet.data.sources.images`.
        is_labelled, links_into: as in `CocoSet`.
        on_bad: "skip" leaves out an image with a bad file, a bad box or a missing file.

    Raises:
        DataError: a directory or a file is not as described above.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str] | None = None,
        missing: Collection[str] = (),
        directories: Mapping[str, str] = DIRECTORIES,
        annotations: str = "Annotations",
        ignore: Collection[str] = (),
        first_pixel: int = 1,
        group_prefix: int = 0,
        thermal_range: ThermalRange | None = None,
        is_labelled: bool = True,
        links_into: str | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        base, bad_samples = Root(Path(root), links_into), BadSamples(on_bad)
        listings = {
            name: files_in(base, base.directory(directories[name]), IMAGES)
            for name in MODALITY_NAMES
            if name in directories and name not in missing
        }
        modalities = tuple(listings)
        if is_labelled:
            listings["annotation"] = files_in(base, base.directory(annotations), {".xml"})
        remedy = "add the files or delete the rest of the image"
        super().__init__(
            paired(listings, where=base.path, remedy=remedy, bad_samples=bad_samples),
            root=base.path,
            modalities=modalities,
            read=partial(read_voc, first_pixel=first_pixel),
            group_of=lambda image_id: image_id[:group_prefix],
            ignore=ignore,
            classes=classes,
            thermal_range=thermal_range,
            bad_samples=bad_samples,
        )
