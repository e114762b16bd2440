"""Where images and boxes come from: one config per format.

Paths of directories and files inside a set are relative to its root.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydet.config.base import Config


class SyntheticSource(Config):
    """An embedded RGB + thermal + event set, the same bytes on every machine."""

    kind: Literal["synthetic"] = "synthetic"
    num_sequences: Annotated[int, Field(ge=2)] = 20
    frames_per_sequence: Annotated[int, Field(ge=1)] = 10
    size_hw: tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]] = (120, 160)
    """Image height and width in pixels."""
    seed: Annotated[int, Field(ge=0)] = 0


class Files(Config):
    """What formats share whose sets are directories of files."""

    follow_links: str | None = None
    """Links in the set are followed if they lead into this directory; null: they are refused unless they are files
    that stay in the set."""


class NpyYoloSource(Files):
    """`images/*.npy` of H x W x 5 (RGB, thermal, event; values 0..255) with YOLO rows in `labels/*.txt`."""

    kind: Literal["npy_yolo"] = "npy_yolo"
    root: str
    """Directory that holds `images/`, `labels/` and, optionally, `classes.txt`."""
    unlabelled: Literal["error", "drop"] = "error"
    """An image whose label file is missing: refuse the set, or leave out every image without a box (as the
    published split of this format does)."""


class ImageFiles(Files):
    """What formats with one image file per modality share."""

    thermal_range: tuple[float, float] | None = None
    """Raw values of a thermal image of more than 8 bits that become 0 and 1, for the whole set; such images need
    it, those of 8 bits do not have it."""

    @model_validator(mode="after")
    def _has_a_width(self) -> Self:
        if self.thermal_range is not None:
            low, high = self.thermal_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"thermal_range: expected low < high, got {low:g}, {high:g}")
        return self


class CocoSource(ImageFiles):
    """One COCO json whose images name one file per modality (`visible` or `rgb`, `thermal`, optional `event`)."""

    kind: Literal["coco"] = "coco"
    annotations: str
    """Path of the json file; image paths are relative to `root`."""
    root: str | None = None
    """Directory of the images; default: the directory of the json file."""
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Categories to keep, in label order; objects of the others are left out, and counted. null: all categories."""


class VocSource(ImageFiles):
    """A directory of images per modality and one Pascal VOC xml per image: the layout of LLVIP."""

    kind: Literal["voc"] = "voc"
    root: str
    rgb: str | None = "visible"
    """Directory of the RGB images (searched to the bottom, as the others; LLVIP's own part is `visible/train`); null
    if there are none."""
    thermal: str | None = "infrared"
    """Directory of the thermal images, under the same names."""
    event: str | None = None
    """Directory of the event images, under the same names."""
    annotations: str = "Annotations"
    """Directory of the xml files, under the same names."""
    ignore: tuple[str, ...] = ()
    """Objects of these names are left out: neither trained on nor evaluated; a detection on one is wrong."""
    first_pixel: Literal[0, 1] = 1
    """The number of an image's first row and column. Pascal VOC counts from 1, and the box has its last pixel:
    xmin 1, xmax 640 is a whole row of 640. With 0, xmin and xmax are edges."""
    group_prefix: Annotated[int, Field(ge=0)] = 0
    """That many first letters of an image's name say its sequence (LLVIP: 2, the place); 0: the names do not tell."""


class YoloSource(ImageFiles):
    """A directory of images per modality and of YOLO rows per label set: the layout of MSRS.

    Directories that are not named here are looked for under their common names, see `raydet.data.sources.yolo`.
    """

    kind: Literal["yolo"] = "yolo"
    root: str
    labels: Literal["rgb", "thermal", "union", "fused"]
    """What counts as an object: what was labelled in the RGB image, in the thermal one, in either of them, or in a
    image fused from both (or in both at once)."""
    union_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """With `union`: two boxes of one class that overlap at least so much, each the other's best, are one object; its
    box is the smallest that holds both."""
    rgb: str | None = None
    """Directory of the RGB images."""
    thermal: str | None = None
    """Directory of the thermal images, under the same names."""
    event: str | None = None
    """Directory of the event images, under the same names."""
    labels_rgb: str | None = None
    """Directory of the labels that were drawn on RGB."""
    labels_thermal: str | None = None
    """Directory of the labels that were drawn on thermal."""
    labels_fused: str | None = None
    """Directory of the labels that were drawn on both."""
    group_prefix: Annotated[int, Field(ge=0)] = 0
    """That many first letters of an image's name say its sequence; 0: the names do not tell."""


class FlirSource(ImageFiles):
    """FLIR ADAS, aligned: `JPEGImages/*_RGB.jpg`, `*_PreviewData.jpeg`, `Annotations/*_PreviewData.xml`."""

    kind: Literal["flir"] = "flir"
    root: str
    subset: str | None = None
    """File with the names of the images to take (`align_train.txt`); default: all."""
    ignore: tuple[str, ...] = ("dog",)
    """Objects of these names are left out. Published figures are for person, bicycle and car: there are few dogs."""
    first_pixel: Literal[0, 1] = 1
    """As in `VocSource`."""


class KaistSource(ImageFiles):
    """KAIST: `set00/V000/{visible,lwir}/I00000.jpg` with a txt (bbGt) or xml per frame. A video is a group."""

    kind: Literal["kaist"] = "kaist"
    root: str
    """Directory that holds the sets, or `images/` with the sets."""
    annotations: str = "annotations"
    """Directory of the annotations, `set00/V000/I00000.txt` or `.xml`; its variants have directories of their own."""
    subset: str | None = None
    """File with the frames to take, lines `set00/V000/I00019`; default: all that are there."""
    ignore: tuple[str, ...] = ("person?", "person?a", "people", "cyclist")
    """Objects of these names are left out, like COCO's crowds: people that cannot be told apart, and what may be no
    person. As in KAIST's own evaluation, a detection on one is neither right nor wrong."""


class MasksSource(ImageFiles):
    """A directory of images per modality and of masks, whose values `classes.yaml` names. See
    `raydet.data.sources.masks` for layouts.

    Directories may have one `{split}`, which stands for the name of a subdirectory: `{split}/images`,
    `leftImg8bit/{split}`, `{split}annot`. Files of an image have the same name without their suffixes; `--data` finds
    directories and suffixes that are usual.
    """

    kind: Literal["masks"] = "masks"
    root: str
    rgb: str | None = None
    """Directory of the RGB images (searched to the bottom, as the others)."""
    thermal: str | None = None
    """Directory of the thermal images."""
    event: str | None = None
    """Directory of the event images."""
    rgbt: str | None = None
    """Directory of images of four channels: red, green, blue, thermal; instead of `rgb` and `thermal`."""
    masks: str = "masks"
    """Directory of the masks: PNG, TIFF or BMP of one channel (8 or 16 bits, or a palette, whose indices count), or in
    the colours of `classes`."""
    rgb_suffix: str = ""
    """What the names of RGB images (or of `rgbt`) end with and others do not, e.g. `_leftImg8bit`; files without it are
    passed over."""
    thermal_suffix: str = ""
    event_suffix: str = ""
    mask_suffix: str = ""
    """As `rgb_suffix`, e.g. `_gtFine_labelIds`."""
    splits: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """What `{split}` stands for; null: every subdirectory that all directories have."""
    classes: str = "classes.yaml"
    """What the values of the masks mean: a file (see `raydet.files.classes`), or a table that raydet has: `camvid`,
    `cityscapes`, `cityscapes_train_ids`."""
    group_prefix: Annotated[int, Field(ge=0)] = 0
    """That many first letters of an image's name say its sequence; 0: the names do not tell, except those of
    Cityscapes (city and sequence)."""

    @model_validator(mode="after")
    def _has_images_once(self) -> Self:
        if self.rgbt is not None and (self.rgb is not None or self.thermal is not None):
            raise ValueError("rgbt holds the images of rgb and thermal; set rgbt, or the other two")
        named = [x for x in (self.rgb, self.thermal, self.event, self.rgbt) if x is not None]
        if not named:
            raise ValueError("name a directory of images: rgb, thermal, event or rgbt")
        counts = {name.count("{split}") for name in (*named, self.masks)}
        if not counts <= {0} and not counts <= {1}:
            raise ValueError(
                "expected {split} once in every directory or in none, got " + ", ".join((*named, self.masks))
            )
        return self


class StreetHazardsSource(ImageFiles):
    """StreetHazards: `train/images/training/TOWN/*.png`, annotations likewise. See
    `raydet.data.sources.streethazards`.
    """

    kind: Literal["streethazards"] = "streethazards"
    root: str
    lists: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Files with the images to take (`train/train.odgt`); null: all that are in the directories."""
    classes: str = "streethazards"
    """As in `MasksSource`."""


class TreeSource(Config):
    """An embedded set with masks and a class tree, the same bytes on every machine: see `raydet.data.tree`."""

    kind: Literal["tree"] = "tree"
    num_images: Annotated[int, Field(ge=2)] = 240
    thermal: bool = False
    """A second modality, and nights: classes of which RGB tells a part, thermal another, and only both all."""
    seed: Annotated[int, Field(ge=0)] = 0


class StrangeSource(Config):
    """An embedded set with masks whose test images show what no class describes: see `raydet.data.strange`.

    Its parts are told by `data.split.kind=named`.
    """

    kind: Literal["strange"] = "strange"
    num_train: Annotated[int, Field(ge=1)] = 200
    num_val: Annotated[int, Field(ge=1)] = 40
    num_calibration: Annotated[int, Field(ge=0)] = 40
    num_test: Annotated[int, Field(ge=0)] = 60
    seed: Annotated[int, Field(ge=0)] = 0


class SilentSource(Config):
    """An embedded set of event windows whose objects stop, and then fire no events: see `raydet.data.silent`."""

    kind: Literal["silent"] = "silent"
    num_sequences: Annotated[int, Field(ge=2)] = 60
    """Of 32 windows each."""
    seed: Annotated[int, Field(ge=0)] = 0


class SwarmSource(Config):
    """An embedded set of event windows with small objects close together: see `raydet.data.swarm`."""

    kind: Literal["swarm"] = "swarm"
    num_sequences: Annotated[int, Field(ge=2)] = 60
    """Of 16 windows each."""
    seed: Annotated[int, Field(ge=0)] = 0


EVENT_CLASSES: dict[str, tuple[str, ...]] = {
    "gen1": ("car", "pedestrian"),
    "1mpx": ("pedestrian", "two_wheeler", "car", "truck", "bus", "traffic_sign", "traffic_light"),
    "etram": ("pedestrian", "car", "bicycle", "bus", "motorbike", "truck", "tram", "wheelchair"),
    "dsec": ("pedestrian", "rider", "car", "bus", "truck", "bicycle", "motorcycle", "train"),
}
"""Names of the class ids of published sets of recordings."""


class EventRecordingsSource(Files):
    """Recordings of event cameras with boxes: `*_td.dat` or `*_td.h5` with `*_bbox.npy`, or the layout of DSEC.

    Which windows there are, and which of them have labels: see `raydet.data.sources.event_recordings`.
    """

    kind: Literal["event_recordings"] = "event_recordings"
    root: str
    classes: Literal["gen1", "1mpx", "etram", "dsec"] | Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of the class ids 0, 1, ..., or a set whose names they are. Files do not tell them."""
    size_hw: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Height and width of the sensor, for files that do not tell them (all .npy, some .h5)."""
    window_ms: Annotated[int, Field(ge=1)] = 50
    bins: Annotated[int, Field(ge=1, le=100)] = 10
    """Time bins per polarity."""
    clip: Annotated[int, Field(ge=1, le=255)] = 10
    """Largest count."""
    halving: bool = False
    """Half the height and the width: every second row and column (eTraM and 1 Mpx as published)."""
    first_label_ms: Annotated[int, Field(ge=0)] = 100
    """Labels are taken from this time of a recording on."""
    label_gap_ms: Annotated[int, Field(ge=0)] = 100
    """Labels closer to the last one that was taken are left out: those of 30 and 60 Hz are thinned to 10 Hz."""
    label_tolerance_ms: Annotated[int, Field(ge=0)] = 5
    """How far labels may lie from whole windows after the last one."""
    min_side_px: Annotated[int, Field(ge=1)] = 5
    """Least width and height of a box inside the sensor, in its pixels."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return EVENT_CLASSES[self.classes] if isinstance(self.classes, str) else self.classes


class ShardsSource(Config):
    """Shards that `raydet data convert` has written: a directory or a URI that holds `manifest.json`."""

    kind: Literal["shards"] = "shards"
    path: str
    """A directory, or file://, s3:// or gs://. How to reach and to sign in to object storage is the environment's."""
    sha256: str | None = None
    """Of the whole set: another one is refused. `--data` fills it in; None takes what is there."""
    simulated: tuple[Literal["event"], ...] = ()
    """Modalities that were simulated before the conversion, as the manifest says. `--data` fills it in."""


Source = Annotated[
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
    | ShardsSource,
    Field(discriminator="kind"),
]
