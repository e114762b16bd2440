"""Photometric augmentation, specific to each sensor.

Colours change by one affine map per image. torchvision's v2 kernels for brightness, contrast and saturation in
sequence take three times as long, and its hue thirty times; they also clip values between the steps. The hue is rotated
about the grey axis (in YIQ), not in HSV. torchvision draws Gaussian noise from torch's global stream, we from a key.

Legend: C channels, H W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from raydet.config import EventPhotometric, Photometric, RgbPhotometric, ThermalPhotometric
from raydet.data.randomness import Key, random_bits, random_stream
from raydet.structures import Sample

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, Rec. 601."""
YIQ = torch.tensor([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], dtype=torch.float64)
FOUR_BYTES_MEAN, FOUR_BYTES_STD = 4 * 127.5, math.sqrt(4 * (256**2 - 1) / 12)

BLUR_PX = 5

OFF = Photometric()


def with_other_values(sample: Sample, photometric: Photometric, key: tuple[Key, ...]) -> Sample:
    """The unpadded sample as seen by other cameras of the same kind; types and shapes are unchanged.

    Args:
        key: of the random draws, such as (seed, epoch, image id).
    """
    modalities = dict(sample.modalities)
    if photometric.rgb != OFF.rgb and "rgb" in modalities:
        modalities["rgb"] = recoloured(modalities["rgb"], photometric.rgb, key)
    if photometric.thermal != OFF.thermal and "thermal" in modalities:
        modalities["thermal"] = recalibrated(modalities["thermal"], photometric.thermal, key)
    if photometric.event != OFF.event and "event" in modalities:
        modalities["event"] = with_other_events(modalities["event"], photometric.event, key)
    return replace(sample, modalities=modalities)


def recoloured(x_CHW: Tensor, change: RgbPhotometric, key: tuple[Key, ...]) -> Tensor:
    """Random blur, brightness, contrast, saturation and hue; without three channels, no saturation and no hue."""
    if change.blur:
        x_CHW = blurred(x_CHW, change, (*key, "blur"))
    brightness, contrast, saturation, turn = 2 * random_stream(*key, "rgb").random_sample(4) - 1
    brightness, contrast = 1 + change.brightness * brightness, 1 + change.contrast * contrast
    gain = brightness * contrast
    means = x_CHW.mean(dim=(1, 2), dtype=torch.float32).tolist()
    weights = LUMA if len(means) == 3 else [1 / len(means)] * len(means)
    mean_grey = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
    offset = brightness * (1 - contrast) * mean_grey
    if len(x_CHW) != 3 or change.saturation == change.hue == 0:
        return _on_values(x_CHW, lambda x: x.mul_(gain).add_(offset))
    matrix = gain * colour_matrix(1 + change.saturation * float(saturation), change.hue * float(turn))
    return _on_values(x_CHW, lambda x: torch.addmm(x.new_tensor(offset), matrix, x.flatten(1)).view_as(x))


def blurred(x_CHW: Tensor, change: RgbPhotometric, key: tuple[Key, ...]) -> Tensor:
    """The image or, with the probability of `change.blur`, a blurred one."""
    chance, share = random_stream(*key).random_sample(2)
    if chance >= change.blur:
        return x_CHW
    low, high = change.blur_sigma_px
    sigma = low + (high - low) * float(share)
    return functional.gaussian_blur_image(x_CHW, kernel_size=[BLUR_PX, BLUR_PX], sigma=[sigma, sigma])


def colour_matrix(saturation: float, turn: float) -> Tensor:
    """RGB matrix, float32 [3, 3], that rotates the hue and scales the saturation, and maps grey to itself.

    >>> torch.allclose(colour_matrix(0.0, 0.25), torch.tensor(LUMA).expand(3, 3), atol=1e-6)
    True
    """
    cosine, sine = saturation * math.cos(math.tau * turn), saturation * math.sin(math.tau * turn)
    turned = torch.tensor([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]], dtype=torch.float64)
    return (torch.linalg.inv(YIQ) @ turned @ YIQ).float()


def recalibrated(x_CHW: Tensor, change: ThermalPhotometric, key: tuple[Key, ...]) -> Tensor:
    """Random gain, offset, and noise, which is normal up to 3.4 standard deviations (a sum of four bytes)."""
    gain, offset, deviation = random_stream(*key, "thermal").random_sample(3)
    gain, offset = 1 + change.gain * (2 * gain - 1), change.offset * (2 * offset - 1)
    scale = _full_scale(x_CHW)

    def changed(x: Tensor) -> Tensor:
        x = x.mul_(gain).add_(offset * scale)
        if change.noise == 0:
            return x
        four = _bytes((4, *x.shape), (*key, "thermal"))
        sums = four[0].astype(np.int16) + four[1] + four[2] + four[3]
        noise = (torch.from_numpy(sums).float() - FOUR_BYTES_MEAN) / FOUR_BYTES_STD
        return x.add_(noise, alpha=deviation * change.noise * scale)

    return _on_values(x_CHW, changed)


def with_other_events(x_CHW: Tensor, change: EventPhotometric, key: tuple[Key, ...]) -> Tensor:
    """Randomly dropped events, and random spurious ones of any strength."""
    dropped, spurious = random_stream(*key, "event").random_sample(2)
    lost, fires = (
        torch.from_numpy(draws < round(share * 2**16))
        for draws, share in zip(
            _bytes((2, *x_CHW.shape, 2), (*key, "event")).view("<u2")[..., 0],
            (dropped * change.dropped, spurious * change.spurious),
            strict=True,
        )
    )
    strength = torch.from_numpy(_bytes(tuple(x_CHW.shape), (*key, "event", "strength")))
    if x_CHW.dtype != torch.uint8:
        strength = strength.to(x_CHW.dtype) / 255
    return torch.maximum(x_CHW.masked_fill(lost, 0), strength.masked_fill(~fires, 0))


def _on_values(x_CHW: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to a float copy on the image's own scale, and clip to the range."""
    changed = change(x_CHW.to(torch.float32, copy=True)).clamp_(0, _full_scale(x_CHW))
    return changed.round_().to(torch.uint8) if x_CHW.dtype == torch.uint8 else changed


def _full_scale(x_CHW: Tensor) -> float:
    return 255.0 if x_CHW.dtype == torch.uint8 else 1.0


def _bytes(shape: tuple[int, ...], key: tuple[Key, ...]) -> NDArray[np.uint8]:
    """Uniform random bytes."""
    count = math.prod(shape)
    words = random_bits(*key).random_raw(count // 8 + 1).astype("<u8", copy=False)
    return words.view(np.uint8)[:count].reshape(shape)
