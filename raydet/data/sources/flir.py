"""FLIR ADAS in its aligned version.

    JPEGImages/FLIR_00002_RGB.jpg          Annotations/FLIR_00002_PreviewData.xml
    JPEGImages/FLIR_00002_PreviewData.jpeg align_train.txt, align_validation.txt

The xml is Pascal VOC's and describes both images. A list of names (`FLIR_00002_PreviewData`, or `FLIR_00002`) selects
a part of the set; images that are not listed may be incomplete.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.files import IMAGES, Root, files_in
from raydet.data.sources.images import ThermalRange
from raydet.data.sources.named_boxes import NamedSet
from raydet.data.sources.pairs import Files, paired
from raydet.data.sources.voc_xml import read_voc
from raydet.errors import DataError
from raydet.files.text import read_names

ENDINGS = {"rgb": "_RGB", "thermal": "_PreviewData"}


class FlirSet(NamedSet):
    """The images of the set, sorted by name.

    Args:
        subset: file with the names to use, relative to the root; default: all.
        classes, missing, ignore, first_pixel, thermal_range, is_labelled, links_into, on_bad: as in `VocSet`.

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
        is_labelled: bool = True,
        links_into: str | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        base, bad_samples = Root(Path(root), links_into), BadSamples(on_bad)
        modalities = tuple(name for name in ENDINGS if name not in missing)
        found = files_in(base, base.directory("JPEGImages"), IMAGES)
        listings = {name: _ending_with(ENDINGS[name], found) for name in modalities}
        if is_labelled:
            xmls = files_in(base, base.directory("Annotations"), {".xml"})
            listings["annotation"] = _ending_with(ENDINGS["thermal"], xmls)
        names = None
        if subset is not None:
            lines = read_names(
                base.inside(subset, f"{base.path}, subset"), expected="one image name per line"
            )
            names = [line.removesuffix(ENDINGS["thermal"]).removesuffix(ENDINGS["rgb"]) for line in lines]
        remedy = "add the files or remove the image from the list"
        super().__init__(
            paired(listings, names=names, where=base.path, remedy=remedy, bad_samples=bad_samples),
            root=base.path,
            modalities=modalities,
            read=partial(read_voc, first_pixel=first_pixel),
            group_of=lambda _: "",
            ignore=ignore,
            classes=classes,
            thermal_range=thermal_range,
            bad_samples=bad_samples,
        )


def _ending_with(ending: str, files: Files) -> dict[str, Path | DataError]:
    """The files with an ending, without it; and errors without any ending, because they may be about any image."""
    return {
        stem.removesuffix(ending): path
        for stem, path in files.items()
        if stem.endswith(ending)
        or (isinstance(path, DataError) and not stem.endswith(tuple(ENDINGS.values())))
    }
