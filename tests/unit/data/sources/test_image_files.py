from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from raydet.data.sources.images import check_sizes, decode, read_header
from raydet.errors import DataError
from tests.image_bytes import chunk, exif, png_16, tiff

COLOUR = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
COUNTS = np.arange(7000, 7048, dtype=np.uint16).reshape(6, 8)

BOMB = zlib.compress(bytes(16 * 2**20))


def saved(path: Path, array: np.ndarray, format_: str = "PNG") -> Path:
    Image.fromarray(array).save(path, format=format_)
    return path


def encoded(array: np.ndarray, format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=format_)
    return buffer.getvalue()


def png(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG that claims a size, with one byte of pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        decode(path, "rgb")
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "WEBP"])
def test_the_bytes_say_what_an_image_is(tmp_path: Path, format_: str) -> None:
    options = {"lossless": True} if format_ == "WEBP" else {}
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", format=format_, **options)
    assert np.array_equal(decode(tmp_path / "a.jpg", "rgb").permute(1, 2, 0).numpy(), COLOUR)
    assert read_header(tmp_path / "a.jpg", "here").size_hw == (6, 8)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_one_range_for_all_counts(tmp_path: Path, format_: str) -> None:
    """The same count is the same value, whatever else the image shows."""
    paths = {
        "a": saved(tmp_path / "a.png", COUNTS, format_),
        "b": saved(tmp_path / "b.png", COUNTS + 10, format_),
    }
    assert read_header(paths["a"], "here").is_deep
    found = {name: decode(path, "thermal", thermal_range=(7000, 7040))[0] for name, path in paths.items()}
    assert found["a"].dtype == torch.float32
    assert found["a"].flatten()[[0, 10, 40, 47]].tolist() == [0, 0.25, 1, 1]
    assert found["b"].flatten()[0] == found["a"].flatten()[10]


def test_degrees_are_a_range_too(tmp_path: Path) -> None:
    kelvin = np.linspace(270, 320, 48, dtype=np.float32).reshape(6, 8)
    saved(tmp_path / "a.tif", kelvin, "TIFF")
    assert decode(tmp_path / "a.tif", "thermal", thermal_range=(270, 320))[0, -1, -1] == 1
    kelvin[0, 0] = np.nan
    saved(tmp_path / "a.tif", kelvin, "TIFF")
    with pytest.raises(DataError, match="expected finite values"):
        decode(tmp_path / "a.tif", "thermal", thermal_range=(270, 320))


def test_deep_images_say_what_to_set(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", COUNTS)
    with pytest.raises(
        DataError, match=r"a\.png: .*with values 7000\.\.7047; set thermal_range=\[low, high\]"
    ):
        check_sizes({"thermal": path}, "here", thermal_range=None)
    for modality in ("rgb", "event"):
        with pytest.raises(DataError, match=rf"expected 8 bits per channel for {modality}"):
            check_sizes({modality: path}, "here", thermal_range=(0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_images_are_upright(tmp_path: Path, format_: str, orientation: int) -> None:
    """As Pillow turns them, in the header and in the pixels."""
    path = tmp_path / "a"
    options = {"lossless": True} if format_ == "WEBP" else {}
    Image.fromarray(COLOUR).save(path, format=format_, exif=exif(orientation), **options)
    with Image.open(path) as image:
        image.load()
        expected_HWC = np.array(ImageOps.exif_transpose(image))
    assert read_header(path, "here").size_hw == expected_HWC.shape[:2]
    assert np.array_equal(decode(path, "rgb").permute(1, 2, 0).numpy(), expected_HWC)


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_deep_images_are_upright(tmp_path: Path, format_: str) -> None:
    Image.fromarray(COUNTS).save(tmp_path / "a", format=format_, exif=exif(6))
    found = decode(tmp_path / "a", "thermal", thermal_range=(7000, 7047))[0].numpy()
    assert np.allclose(found, np.rot90((COUNTS - 7000) / 47, k=-1))


def test_metadata_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    """Where Pillow reads them with the pixels only."""
    content, path = encoded(COLOUR, "PNG"), tmp_path / "a.png"
    end = content.index(b"IEND") - 4
    raw = exif(6).tobytes().removeprefix(b"Exif\0\0")
    path.write_bytes(content[:end] + chunk(b"eXIf", raw) + content[end:])
    assert read_header(path, "here").size_hw == tuple(decode(path, "rgb").shape[1:]) == (8, 6)


def test_orientation_in_xmp(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", xmp=xmp)
    assert read_header(tmp_path / "a.jpg", "here").size_hw == (8, 6)
    assert decode(tmp_path / "a.jpg", "rgb").shape == (3, 8, 6)


def test_orientation_in_the_xmp_of_a_tiff(tmp_path: Path) -> None:
    """Which Pillow obeys in the pixels, not in the size."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(COLOUR).save(tmp_path / "a.tif", tiffinfo={700: xmp})
    found = decode(tmp_path / "a.tif", "rgb").permute(1, 2, 0).numpy()
    assert read_header(tmp_path / "a.tif", "here").size_hw == found.shape[:2]


def test_a_png_that_begins_with_another_chunk(tmp_path: Path) -> None:
    content = encoded(COLOUR, "PNG")
    (tmp_path / "a.png").write_bytes(content[:8] + chunk(b"teXt", b"a\0b") + content[8:])
    refused(tmp_path / "a.png", "begins with its header|is not an image")


def test_damaged_metadata_are_named(tmp_path: Path) -> None:
    content = encoded(COLOUR, "PNG")
    start = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(
        content[:start] + chunk(b"eXIf", b"nothing of the kind") + content[start:]
    )
    refused(tmp_path / "a.png", "the metadata are damaged")


def test_a_turned_image_beside_one_that_is_not(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", exif=exif(8))
    files = {"rgb": tmp_path / "a.jpg", "thermal": saved(tmp_path / "b.png", COLOUR[..., 0])}
    with pytest.raises(
        DataError, match=r"rgb 6 x 8, thermal 8 x 6 \(rgb turned upright as the metadata say\); align"
    ):
        check_sizes(files, "here", thermal_range=None)


@pytest.mark.parametrize("values", [2**10, 2**14, 2**16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_several_channels_of_16_bits_are_refused(tmp_path: Path, channels: int, values: int) -> None:
    """Pillow reads their upper 8 bits, which are nearly black where a sensor has 10 of them."""
    array = np.random.RandomState(0).randint(0, values, (6, 8, channels)).astype(np.uint16)
    path = tmp_path / "a.png"
    for content in (png_16(array), tiff(array[..., [0, 1, -1]], photometric=2)):
        path.write_bytes(content)
        for modality in ("rgb", "event"):
            with pytest.raises(DataError, match=rf"expected 8 bits per channel for {modality}, got 16"):
                decode(path, modality)
            with pytest.raises(DataError, match=r"expected 8 bits per channel"):
                check_sizes({modality: path}, "here", thermal_range=None)
        for thermal_range in (None, (0.0, float(values))):
            with pytest.raises(DataError, match=r"expected one channel of more than 8 bits, got \d channels"):
                decode(path, "thermal", thermal_range=thermal_range)


def test_white_is_zero(tmp_path: Path) -> None:
    """Inverted by Pillow at 8 bits, not at 16."""
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(COLOUR[..., 0], photometric=0))
    assert np.array_equal(decode(path, "thermal")[0].numpy(), 255 - COLOUR[..., 0])
    path.write_bytes(tiff(COUNTS, photometric=0))
    with pytest.raises(DataError, match="in which 0 is white; invert the image"):
        decode(path, "thermal", thermal_range=(7000, 7047))


def test_several_images_in_a_file_are_refused(tmp_path: Path) -> None:
    image, other = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    for format_ in ("TIFF", "WEBP", "PNG"):
        image.save(tmp_path / "a", format=format_, save_all=True, append_images=[other])
        refused(tmp_path / "a", "expected one image, got a file of 2")
    image.save(tmp_path / "a", format="MPO", save_all=True, append_images=[other])  # a photo and its preview
    assert decode(tmp_path / "a", "rgb").shape == (3, 6, 8)


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (0, 5), (8193, 8192), (12_000, 12_000)])
def test_a_size_that_no_camera_has(tmp_path: Path, size: tuple[int, int]) -> None:
    """12,000 x 12,000 is where Pillow warns only."""
    path = tmp_path / "a.png"
    path.write_bytes(png(*size))
    with pytest.raises(DataError, match=r"a\.png"):
        read_header(path, "here")
    refused(path, "pixels|is not an image")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_text_that_unpacks_to_gigabytes(tmp_path: Path, kind: bytes) -> None:
    prefix = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    (tmp_path / "a.png").write_bytes(png(8, 6, chunk(kind, prefix + BOMB)))
    refused(tmp_path / "a.png", r"is not an image .*too large")


def test_no_program_is_started(tmp_path: Path) -> None:
    """Pillow hands PostScript to an interpreter."""
    witness = tmp_path / "witness"
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n({witness}) (w) file closefile\nshowpage\n"
    (tmp_path / "a.png").write_text(text)
    refused(tmp_path / "a.png", "is not an image")
    assert not witness.exists()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path / "a.png", "it is not a regular file")
    refused(tmp_path / "b.png", "does not exist")
    (tmp_path / "c.png").mkdir()
    refused(tmp_path / "c.png", "cannot be read")


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0\x08\0\0\0", b"GIF89a"]
)
def test_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "is not an image|truncated or damaged|pixels")


VALID = [encoded(COLOUR, name) for name in ("PNG", "JPEG", "TIFF", "BMP", "WEBP")] + [encoded(COUNTS, "TIFF")]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An image with some bytes changed, cut, or put in."""
    content = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(content) - 1))
        content[place] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content) - 1)) :]
    return bytes(content) + draw(st.binary(max_size=8))


def read(path: Path, modality: str, thermal_range: tuple[float, float] | None) -> torch.Tensor | str:
    """Pixels, or the error's line."""
    try:
        check_sizes({modality: path}, "here", thermal_range=thermal_range)
        return decode(path, modality, thermal_range=thermal_range)
    except DataError as error:
        return str(error)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=mutated() | st.binary(max_size=200), modality=st.sampled_from(["rgb", "thermal"]))
def test_any_bytes_are_an_image_or_one_line(tmp_path: Path, content: bytes, modality: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for thermal_range in (None, (0.0, 100.0)):
        found = read(path, modality, thermal_range)
        if isinstance(found, str):
            assert "\n" not in found
            assert "a.png" in found
        else:
            assert found.shape[0] == (3 if modality == "rgb" else 1)
            assert found.dtype == torch.uint8 or 0 <= float(found.min()) <= float(found.max()) <= 1
