"""Open a recording of any format that raydet reads; its first bytes tell which one it is."""

from __future__ import annotations

from pathlib import Path

from raydet.errors import DataError
from raydet.files.events.dat import open_dat
from raydet.files.events.evt2 import open_evt2
from raydet.files.events.evt3 import open_evt3
from raydet.files.events.hdf5 import MAGIC as HDF5_MAGIC
from raydet.files.events.hdf5 import open_hdf5
from raydet.files.events.headers import read_text_header
from raydet.files.events.npy import open_npy
from raydet.files.events.recording import EventRecording
from raydet.files.text import open_regular

NPY_MAGIC = b"\x93NUMPY"
AEDAT_MAGIC = b"#!AER-DAT"


def open_events(path: str | Path, size_hw: tuple[int, int] | None = None) -> EventRecording:
    """A recording: DAT, raw (EVT 2.0 or 3.0), HDF5 (RVT, eTraM, Gen1, DSEC) or .npy (t, x, y, p).

    Args:
        size_hw: height and width of the sensor, for files that do not tell it; a .npy file never does.

    Raises:
        DataError: the file is damaged, or of another format.
        ConfigError: the format needs a package that is not installed.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            first = file.read(16)
    except OSError as error:
        raise DataError(f"{path}: expected a recording, {error.strerror or error}; check the path") from error
    if first.startswith(HDF5_MAGIC):
        return open_hdf5(path, size_hw)
    if first.startswith(NPY_MAGIC):
        return open_npy(path, size_hw)
    if first.startswith(AEDAT_MAGIC):
        raise DataError(
            f"{path}: is an AEDAT file, which raydet does not read; convert it to .npy (t, x, y, p) or HDF5 with "
            "iniVation's dv-processing"
        )
    if first and not first.startswith(b"%"):
        raise DataError(
            f"{path}: expected a recording (DAT, raw EVT 2.0 or 3.0, HDF5, .npy), got a file that begins with "
            f"{first[:8]!r}; convert it"
        )
    match read_text_header(path).encoding:
        case None:
            return open_dat(path, size_hw)
        case "2.0":
            return open_evt2(path, size_hw)
        case "3.0":
            return open_evt3(path, size_hw)
        case other:
            raise DataError(
                f"{path}: expected EVT 2.0 or 3.0, its header says EVT {other}; convert it with Metavision"
            )
