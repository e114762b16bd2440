"""What training changes at random in its images. Everything beyond flip and scale jitter is off by default."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raydet.config.base import Config

Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Crop(Config):
    """A random part of the image, taken around boxes before it is enlarged to the canvas."""

    min_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Height and width of the part, each drawn by itself, are at least this fraction of the image's; 1 is off."""
    keep: Literal["one", "all"] = "one"
    """What stays whole: one box, drawn at random, or all of them. The cut of `scale_jitter` above 1 respects it as
    far as the canvas is large enough."""


class NativeCrop(Config):
    """A window of the image at its own resolution, as large as the canvas; what lies beyond the image has no label."""

    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)
    """Range of the factor by which the image is resized before the window is taken."""
    window: Literal["fixed", "scaled"] = "fixed"
    """fixed: the window is as large as the canvas, and shows canvas / factor pixels of the image: things differ in
    size. scaled: the window grows with the factor and is resized to the canvas, as in a published StreetHazards
    comparison. It always shows as many pixels of the image as the canvas has: the factor cancels, and only blurs."""


class RgbPhotometric(Config):
    """Factors are drawn from 1 - x .. 1 + x for each image."""

    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """About the image's mean grey."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of the hue to either side, in turns; 0.5 is the opposite colour."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur over 5 x 5 pixels of the canvas."""
    blur_sigma_px: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.1, 2.0)


class ThermalPhotometric(Config):
    """x -> gain * x + offset + noise, on a 0..1 scale."""

    gain: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The factor is drawn from 1 - x .. 1 + x for each image."""
    offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What is added is drawn from -x .. x for each image."""
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest deviation of a normal draw per value; the deviation is drawn from 0 .. x for each image."""


class EventPhotometric(Config):
    """Events that the camera missed, and events of nothing."""

    dropped: Share = 0.0
    """Largest share of the values that are set to 0; the share is drawn from 0 .. x for each image."""
    spurious: Share = 0.0
    """Largest share of the values that fire by themselves; the share is drawn from 0 .. x for each image."""


class Photometric(Config):
    """Changes of values that leave everything in its place, for each sensor in its own way."""

    rgb: RgbPhotometric = RgbPhotometric()
    thermal: ThermalPhotometric = ThermalPhotometric()
    event: EventPhotometric = EventPhotometric()


class ModalityDropout(Config):
    """Probability that an image comes without a modality: fed as a missing one is, as zeros after normalisation.

    Of what the model reads, at least one is left.
    """

    rgb: Probability = 0.0
    thermal: Probability = 0.0
    event: Probability = 0.0


class Augmentation(Config):
    """Random changes that move all modalities and boxes together, and those that befall one modality alone.

    Each has draws of its own, from (seed, epoch, image id): switching one on leaves the others as they are.
    """

    flip_probability: Probability = 0.5
    """Horizontal flip."""
    scale_jitter: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.8, 1.25)
    """Range of the factor on the letterbox's scale; above 1 the image is cropped to the canvas. (1, 1) is off."""
    min_box_px: Annotated[float, Field(ge=0)] = 2.0
    """Boxes whose shorter side is less than this after the change are dropped."""
    min_box_kept: Share = 0.0
    """Boxes of which less than this share of the area is left after all cuts are dropped."""
    crop: Crop = Crop()
    native_crop: NativeCrop | None = None
    """Instead of the letterboxed image, of `scale_jitter` and of `crop`; null: off."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """The angle is drawn from -x .. x; corners that open have no label. For masks only: boxes would not fit."""
    mosaic: Probability = 0.0
    """Probability of four images around a point of the canvas: the image itself and three drawn from all that
    train. Each fills its quarter, at its own scale or larger, around one of its boxes; `crop` does not apply."""
    misalignment_px: Annotated[int, Field(ge=0)] = 0
    """Each modality but rgb is shifted by a whole number of source pixels, drawn from -x .. x for either direction;
    boxes stay where rgb shows the objects. Without rgb the first modality stays."""
    photometric: Photometric = Photometric()
    modality_dropout: ModalityDropout = ModalityDropout()

    @model_validator(mode="after")
    def _one_way_to_crop(self) -> Self:
        if self.native_crop is not None and (self.mosaic > 0 or self.crop.min_fraction < 1):
            raise ValueError(
                "augmentation.native_crop replaces crop and mosaic; leave them at their defaults"
            )
        return self
