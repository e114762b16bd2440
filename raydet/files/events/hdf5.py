"""HDF5 recordings: those of RVT, eTraM and Gen1 (`events/{x,y,p,t}`, `height`, `width`) and of DSEC (`t_offset`).

They are read by `h5py` in a process of its own, because libhdf5 writes beyond its memory on hostile files: such a file
takes that process along, and nothing else. The two talk through pipes in plain numbers; nothing is unpickled. Links to
other files, and data that lie in other files, are refused.

Prophesee's own HDF5 files (`CD/events`) are compressed by a codec (ECF) that is in no package; they are refused.

Legend: N events.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import resource
import select
import struct
import subprocess
import sys
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np

from raydet.errors import ConfigError, DataError
from raydet.files.events.headers import checked_size
from raydet.files.events.npy import COLUMNS, events_of_columns
from raydet.files.events.recording import BLOCK, Block, EventRecording, Events, State
from raydet.files.text import one_line

MAGIC = b"\x89HDF\r\n\x1a\n"
DSEC_SIZE_HW = (480, 640)
REQUEST = struct.Struct("<qq")
"""First event, number of events."""
REPLY = struct.Struct("<q")
"""Number of events, which follow as columns; or the negative length of an error message."""
MAX_MESSAGE_BYTES = 2**16
MAX_MEMORY_BYTES = 4 * 2**30
MAX_EVENTS_PER_BYTE = 1000
"""No codec is better; a file that says so would keep its reader busy for days."""
TIMEOUT_S = 120


def open_hdf5(path: Path, size_hw: tuple[int, int] | None = None) -> EventRecording:
    """An HDF5 recording.

    Args:
        size_hw: of the sensor, for files that do not tell it.

    Raises:
        ConfigError: h5py or hdf5plugin is not installed.
        DataError: the file is damaged, or of another layout.
    """
    for module in ("h5py", "hdf5plugin"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"{path}: HDF5 recordings need {module}, it is not installed: pip install 'raydet[events]'"
            )
    reader = _Hdf5Blocks(path)
    height, width = checked_size(path, reader.size_hw, size_hw)
    return EventRecording(path, height, width, reader)


class _Hdf5Blocks:
    """The side of the caller."""

    initial: State = ()

    def __init__(self, path: Path) -> None:
        self._path = path
        command = [sys.executable, "-m", __name__, str(path.absolute())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._end = weakref.finalize(self, _ended, self._process)
        content = json.loads(self._read(self._length()))
        self.num_events = int(content["num_events"])
        self.size_hw = (
            None if content["size_hw"] is None else (int(content["size_hw"][0]), int(content["size_hw"][1]))
        )

    @property
    def num_blocks(self) -> int:
        return -(-self.num_events // BLOCK)

    def read(self, block: int, state: State) -> Block:
        count = min(BLOCK, self.num_events - block * BLOCK)
        try:
            self._requests.write(REQUEST.pack(block * BLOCK, count))
            self._requests.flush()
        except OSError as error:
            raise self._lost() from error
        if self._length() != count:
            raise self._lost()
        events = Events(
            np.frombuffer(self._read(8 * count), np.int64),
            np.frombuffer(self._read(2 * count), np.uint16),
            np.frombuffer(self._read(2 * count), np.uint16),
            np.frombuffer(self._read(count), np.uint8),
        )
        return Block(events, ())

    def _length(self) -> int:
        """The number that begins a reply.

        Raises:
            DataError: the reply is an error.
        """
        ready, _, _ = select.select([self._replies], [], [], TIMEOUT_S)
        if not ready:
            self._process.kill()
            raise DataError(
                f"{self._path}: reading took more than {TIMEOUT_S} s; the file is damaged, or its disk is too slow"
            )
        (length,) = REPLY.unpack(self._read(REPLY.size))
        if length < 0:
            text = self._read(min(-length, MAX_MESSAGE_BYTES)).decode("utf-8", "replace")
            raise DataError(f"{self._path}: {text}")
        return int(length)

    def _read(self, count: int) -> bytes:
        content = self._replies.read(count)
        if len(content) != count:
            raise self._lost()
        return content

    def _lost(self) -> DataError:
        self._end()
        return DataError(
            f"{self._path}: the process that reads it ended with exit code {self._process.returncode}; the file is "
            "damaged, copy it again"
        )


def _ended(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # of a request that could not be sent
                pipe.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(path: Path, requests: IO[bytes], replies: IO[bytes]) -> None:
    """The side that reads: one reply about the file, then one per request."""
    import h5py
    import hdf5plugin  # noqa: F401 -- registers blosc, zstd and others with libhdf5

    try:
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(
                f"expected an HDF5 file, got a broken one ({one_line(error)}); copy it again"
            ) from error
        columns, start_us = _columns(file)
        num_events, num_bytes = len(columns["t"]), path.stat().st_size
        if num_events > MAX_EVENTS_PER_BYTE * num_bytes:
            raise DataError(
                f"expected events, got {num_events} of them in {num_bytes} bytes; copy the file again"
            )
        content = {"num_events": num_events, "size_hw": _size_of(file)}
        told = json.dumps(content).encode()
        replies.write(REPLY.pack(len(told)) + told)
        replies.flush()
        while len(request := requests.read(REQUEST.size)) == REQUEST.size:
            first, count = REQUEST.unpack(request)
            try:
                parts = {name: column[first : first + count] for name, column in columns.items()}
            except (OSError, RuntimeError, ValueError) as error:
                raise DataError(
                    f"events from {first} on cannot be read ({one_line(error)}); the file is damaged, copy it again"
                ) from error
            events = events_of_columns(parts, f"from event {first}")
            events = events._replace(t_us=events.t_us + start_us)
            replies.write(REPLY.pack(count))
            replies.writelines(values_N.tobytes() for values_N in events)
            replies.flush()
    except DataError as error:
        message = str(error).encode()[:MAX_MESSAGE_BYTES]
        replies.write(REPLY.pack(-len(message)) + message)
        replies.flush()


def _columns(file: Any) -> tuple[dict[str, Any], int]:
    """The data sets of t, x, y, p, and the time to be added to t."""
    import h5py

    if isinstance(_own(file, "CD"), h5py.Group):
        raise DataError(
            "is an HDF5 file of Prophesee (CD/events), whose codec ECF no package has; convert it to RAW or DAT with "
            "metavision_file_to_dat"
        )
    group = _own(file, "events")
    if not isinstance(group, h5py.Group):
        raise DataError(
            f"expected a group `events` with t, x, y, p, found {one_line(sorted(file)[:8])}; convert the file"
        )
    columns = {}
    for name in COLUMNS:
        column = _own(group, name)
        if not isinstance(column, h5py.Dataset) or column.ndim != 1 or column.dtype.kind not in "iub":
            raise DataError(
                f"expected events/{name} as a list of integers, found {one_line(column)}; convert the file"
            )
        if column.external is not None or column.is_virtual:
            raise DataError(
                f"the data of events/{name} lie in another file; copy them into one with h5repack"
            )
        columns[name] = column
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"expected t, x, y, p of one length, got {lengths}; the file is truncated, copy it again"
        )
    offset = _scalar(file, "t_offset")
    return columns, 0 if offset is None else offset


def _size_of(file: Any) -> tuple[int, int] | None:
    """Height and width; they stand beside the events, or at the top."""
    for where in (_own(file, "events"), file):
        height, width = _scalar(where, "height"), _scalar(where, "width")
        if height is not None and width is not None:
            return height, width
    return DSEC_SIZE_HW if "ms_to_idx" in file and "t_offset" in file else None


def _scalar(group: Any, name: str) -> int | None:
    import h5py

    found = _own(group, name)
    if found is None:
        return None
    if not isinstance(found, h5py.Dataset) or found.size != 1 or found.dtype.kind not in "iu":
        raise DataError(f"expected {name} as one integer, found {one_line(found)}; correct it")
    value = int(found[()].item())
    if not 0 <= value < 2**61:
        raise DataError(f"expected {name} from 0 to 2^61, got {value}; correct it")
    return value


def _own(group: Any, name: str) -> Any:
    """A member of a group that lies in the file itself; None if there is none of this name."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{name} is a link to elsewhere; copy the data into the file with h5repack")
    return group.get(name)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    _serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
