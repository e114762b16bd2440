"""Anomaly maps of any tool beside the masks that they are measured against, both as files.

A mask has one channel, in a format that keeps values. A map has one score per pixel: a `.npy` array [H, W] of floats,
which is never unpickled, or a PNG or TIFF of one channel of 8 or 16 bits, whose values are the scores. The two belong
together if their paths below the two directories are the same but for the suffix. Links are followed: both directories
were named by the user, and nothing is written.

Legend: H W the mask's height and width, h w the map's.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from raydet.data.sources.files import Root, files_in
from raydet.data.sources.images import check_pixels, decode_values, read_header
from raydet.errors import DataError
from raydet.files.text import one_line, open_regular

Scores = NDArray[np.floating]

MASKS = (".png", ".tif", ".tiff", ".bmp")
MAPS = (".npy", ".png", ".tif", ".tiff")
FLOATS = ("float16", "float32", "float64")


class MaskAndMap(NamedTuple):
    """The two files of one image."""

    name: str
    """Their path below either directory, without the suffix."""
    mask: Path
    scores: Path


class Pixels(NamedTuple):
    """The truth and the scores of one image."""

    values_HW: NDArray[np.integer]
    """The mask's, in 0..65535."""
    scores_HW: Scores
    """In the map's own precision; float32 for an image file."""
    is_resized: bool


def pair_files(truth: Path, maps: Path) -> list[MaskAndMap]:
    """The masks and maps below two directories, sorted by name.

    Raises:
        DataError: a directory cannot be read or has no masks, a mask has no map or the other way round, or two files
            have the same name.
    """
    masks_of, maps_of = _files(truth, MASKS), _files(maps, MAPS)
    if not masks_of:
        raise DataError(f"{truth}: expected masks ({', '.join(MASKS)}), got none; check the path")
    for without, of, partner, where in (
        (masks_of.keys() - maps_of.keys(), "mask", f"map ({', '.join(MAPS)})", maps),
        (maps_of.keys() - masks_of.keys(), "map", f"mask ({', '.join(MASKS)})", truth),
    ):
        if without:
            raise DataError(
                f"{where}: expected a {partner} for each {of}, {len(without)} of {len(masks_of | maps_of)} names have "
                f"none, the first is {one_line(min(without))}; add it below the same subdirectory, or remove the {of}"
            )
    return [MaskAndMap(name, mask, maps_of[name]) for name, mask in masks_of.items()]


def read_pixels(files: MaskAndMap, *, resize: bool) -> Pixels:
    """Decode a mask and its map.

    Args:
        resize: a map of another size is resized to the mask's, bilinearly (pixel centres aligned, without smoothing, as
            logits are upsampled); False: it is refused.

    Raises:
        DataError: a file is damaged, is not as described at the top of the module, or the sizes differ.
    """
    values_HW, scores_hw = decode_values(files.mask), _read_scores(files.scores)
    if values_HW.ndim != 2 or values_HW.min() < 0:
        problem = "negative values" if values_HW.ndim == 2 else "colours"
        raise DataError(
            f"{files.mask}: expected a mask of one channel with values from 0, got {problem}; export ids"
        )
    if scores_hw.shape == values_HW.shape:
        return Pixels(values_HW, scores_hw, is_resized=False)
    if not resize:
        (height, width), (map_height, map_width) = values_HW.shape, scores_hw.shape
        raise DataError(
            f"{files.scores}: expected {width} x {height} like its mask {files.mask}, got {map_width} x {map_height}; "
            "export maps of the masks' size, or add --resize"
        )
    if not np.isfinite(scores_hw).all():
        raise DataError(
            f"{files.scores}: expected finite scores, because the map is resized, got infinite ones or NaN; export "
            "maps of the masks' size"
        )
    wide_11hw = torch.from_numpy(scores_hw.astype(np.promote_types(scores_hw.dtype, np.float32)))[None, None]
    resized = interpolate(wide_11hw, size=values_HW.shape, mode="bilinear", align_corners=False)
    return Pixels(values_HW, resized[0, 0].numpy(), is_resized=True)


def _files(directory: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found = files_in(Root(directory, links_into="/"), directory, suffixes, by_path=True)
    paths = {}
    for name, file in found.items():
        if isinstance(file, DataError):
            raise file
        paths[name] = file
    return paths


def _read_scores(path: Path) -> Scores:
    """[h, w]."""
    if path.suffix.lower() != ".npy":
        header = read_header(path, str(path))
        if header.channels != 1 or header.bits not in (8, 16):
            raise DataError(
                f"{path}: expected scores as one channel of 8 or 16 bits, got {header.channels} of {header.bits}; "
                "save the scores themselves, as .npy of float32 if need be"
            )
        return decode_values(path).astype(np.float32)
    try:
        with open_regular(path), warnings.catch_warnings():  # a pipe would block
            warnings.simplefilter("ignore")  # about headers written by Python 2, which are read correctly
            # Shape and type are checked before anything is read.
            array = npy_format.open_memmap(path, mode="r")
    except Exception as error:  # the header is a Python literal: numpy's reader fails in many ways
        raise DataError(
            f"{path}: expected a .npy array of floats, got another or a damaged file ({one_line(error)}); write it "
            "with numpy.save"
        ) from error
    if array.ndim != 2 or array.dtype.name not in FLOATS:
        raise DataError(
            f"{path}: expected [height, width] of {', '.join(FLOATS)}, got {one_line(list(array.shape))} of "
            f"{one_line(array.dtype)}; save one score per pixel"
        )
    height, width = array.shape
    check_pixels(height, width, path)
    return np.array(array, dtype=array.dtype.newbyteorder("="))
