"""FLIR ADAS in its aligned version.

    JPEGImages/FLIR_00002_RGB.jpg          Annotations/FLIR_00002_PreviewData.xml
    JPEGImages/FLIR_00002_PreviewData.jpeg align_train.txt, align_validation.txt

The xml is Pascal VOC's and holds for both images. A list of names (`FLIR_00002_PreviewData`, or `FLIR_00002`) takes
a part of the set; what is not on it may be incomplete.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from raydet.data.sources.bad_samples import OnBad, Sieve
from raydet.data.sources.files import IMAGES, Root, files_in, read_names
from raydet.data.sources.images import ThermalRange
from raydet.data.sources.named_boxes import NamedReader, prefix_of
from raydet.data.sources.paired_images import PairedImages
from raydet.data.sources.pairs import Files, paired
from raydet.data.sources.voc_xml import read_voc
from raydet.errors import DataError

IMAGE_DIRECTORY, ANNOTATION_DIRECTORY = "JPEGImages", "Annotations"
ENDINGS = {"rgb": "_RGB", "thermal": "_PreviewData"}


class FlirSet(PairedImages):
    """The images of the set, in the order of their names.

    Args:
        root: the directory.
        subset: file with the names to take, relative to the root; default: all.
        classes, missing, ignore, first_pixel, thermal_range, on_bad: as in `VocSet`.

    Raises:
        DataError: a directory or a file is not as described above.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str] | None = None,
        missing: Collection[str] = (),
        subset: str | None = None,
        ignore: Collection[str] = ("dog",),
        first_pixel: int = 1,
        thermal_range: ThermalRange | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        place, sieve = Root(Path(root)), Sieve(on_bad)
        modalities = tuple(name for name in ENDINGS if name not in missing)
        found = files_in(place, place.directory(IMAGE_DIRECTORY), IMAGES)
        listings = {name: _ending_with(ENDINGS[name], found) for name in modalities}
        listings["annotation"] = _ending_with(
            ENDINGS["thermal"], files_in(place, place.directory(ANNOTATION_DIRECTORY), {".xml"})
        )
        files = paired(
            listings,
            names=None if subset is None else _listed(place.inside(subset, f"{place.path}, subset")),
            where=place.path,
            remedy="add the files or take the image out of the list",
            sieve=sieve,
        )
        reader = NamedReader(
            root=place.path,
            modalities=modalities,
            read=partial(read_voc, first_pixel=first_pixel),
            group_of=partial(prefix_of, letters=0),
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


def _ending_with(ending: str, files: Files) -> dict[str, Path | DataError]:
    """With what must not be read and has no ending that says whose it is: a linked directory may hold anything."""
    return {
        stem.removesuffix(ending): path
        for stem, path in files.items()
        if stem.endswith(ending)
        or (isinstance(path, DataError) and not stem.endswith(tuple(ENDINGS.values())))
    }


def _listed(path: Path) -> list[str]:
    names = read_names(path, wanted="one image name per line")
    return [name.removesuffix(ENDINGS["thermal"]).removesuffix(ENDINGS["rgb"]) for name in names]
