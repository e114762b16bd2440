"""Files that belong together by their names: an image's modalities and its labels, from several directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from raydet.data.sources.bad_samples import Sieve
from raydet.data.sources.files import one_line
from raydet.errors import DataError

NUM_NAMED = 3
"""Files named in a message that concerns many."""

Files = Mapping[str, Path | DataError]
"""By the image's name; a file that must not be read is its error."""


def paired(
    listings: Mapping[str, Files],
    *,
    where: Path,
    remedy: str,
    sieve: Sieve,
    names: Sequence[str] | None = None,
) -> dict[str, dict[str, Path]]:
    """The images that have a file in every listing: by name, the file of each listing.

    Args:
        listings: by the name of a listing ("rgb", "labels"), files by the image's name.
        where: the set, for messages.
        remedy: what to do about missing files.
        names: the images to take; default: all.

    Raises:
        DataError: a file is missing or must not be read. With a sieve that skips, the image is left out.
    """
    if names is None:
        names = sorted({name for files in listings.values() for name in files})
    pairs = {name: {kind: files.get(name) for kind, files in listings.items()} for name in sorted(set(names))}
    good: dict[str, dict[str, Path]] = {}
    lacking: dict[str, list[str]] = {kind: [] for kind in listings}
    for name, files in pairs.items():
        paths = {kind: file for kind, file in files.items() if isinstance(file, Path)}
        bad = [file for file in files.values() if isinstance(file, DataError)]
        if len(paths) == len(listings):
            good[name] = paths
        elif bad:
            sieve.take(one_line(name), partial(_refuse, bad[0]))
        else:
            for kind in listings.keys() - paths.keys():
                lacking[kind].append(name)
    _report_holes(lacking, listings, where=where, remedy=remedy, sieve=sieve)
    return good


def _refuse(error: DataError) -> None:
    raise error


def _report_holes(
    lacking: Mapping[str, Sequence[str]],
    listings: Mapping[str, Files],
    *,
    where: Path,
    remedy: str,
    sieve: Sieve,
) -> None:
    if not any(lacking.values()):
        return
    if sieve.on_bad == "error":
        shown = ", ".join(f"{len(files)} {kind}" for kind, files in listings.items())
        holes = ", ".join(
            f"{len(missing)} without {kind}{named(missing)}" for kind, missing in lacking.items() if missing
        )
        raise DataError(f"{where}: wanted one file of each kind per image, got {shown}: {holes}; {remedy}")
    without = {kind: frozenset(missing) for kind, missing in lacking.items()}
    for name in sorted(frozenset[str]().union(*without.values())):
        kinds = " and ".join(kind for kind, missing in without.items() if name in missing)
        sieve.leave_out(name, f"{where}: image {name} has no {kinds} file; {remedy}")


def named(names: Sequence[str]) -> str:
    """The first of many, for a message.

    >>> named(["a", "b", "c", "d"])
    ' (a, b, c, ...)'
    """
    more = ", ..." if len(names) > NUM_NAMED else ""
    return f" ({', '.join(names[:NUM_NAMED])}{more})" if names else ""
