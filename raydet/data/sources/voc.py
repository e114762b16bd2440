"""A directory of images per modality and one Pascal VOC xml per image: the layout of LLVIP.

    visible/[...]/010001.jpg     infrared/[...]/010001.jpg     Annotations/[...]/010001.xml

Directories are searched to the bottom; the names without their endings pair the files, so each may be there once. All
files of an image are of one size. `difficult` objects are objects.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from raydet.data.sources.bad_samples import OnBad, Sieve
from raydet.data.sources.files import IMAGES, Root, files_in
from raydet.data.sources.images import MODALITY_NAMES, ThermalRange
from raydet.data.sources.named_boxes import NamedReader, prefix_of
from raydet.data.sources.paired_images import PairedImages
from raydet.data.sources.pairs import paired
from raydet.data.sources.voc_xml import read_voc

DIRECTORIES: Mapping[str, str] = {"rgb": "visible", "thermal": "infrared"}


class VocSet(PairedImages):
    """The images of such a directory, in the order of their names.

    Args:
        root: the directory.
        classes: names in label order; default: `classes.txt`, or else all names that are there, sorted.
        missing: modalities to leave out.
        directories: of the images, by modality.
        annotations: directory of the xml files.
        ignore: names of objects to leave out.
        first_pixel, group_prefix: see `raydet.config.VocSource`.
        thermal_range: see `raydet.data.sources.images`.
        on_bad: "skip" leaves out an image with a bad file, a bad box or no partner.

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
        on_bad: OnBad = "error",
    ) -> None:
        place, sieve = Root(Path(root)), Sieve(on_bad)
        listings = {
            name: files_in(place, place.directory(directories[name]), IMAGES)
            for name in MODALITY_NAMES
            if name in directories and name not in missing
        }
        modalities = tuple(listings)
        listings["annotation"] = files_in(place, place.directory(annotations), {".xml"})
        files = paired(
            listings, where=place.path, remedy="add the files or delete the rest of the image", sieve=sieve
        )
        reader = NamedReader(
            root=place.path,
            modalities=modalities,
            read=partial(read_voc, first_pixel=first_pixel),
            group_of=partial(prefix_of, letters=group_prefix),
            ignore=ignore,
            thermal_range=thermal_range,
        )
        images, names = reader.open(files, classes=classes, sieve=sieve)
        super().__init__(
            images,
            where=place.path,
            classes=names,
            modalities=modalities,
            thermal_range=thermal_range,
            sieve=sieve,
        )
