"""Pair the files of an image, its modalities and labels from several directories, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raydet.data.sources.bad_samples import BadSamples
from raydet.errors import DataError
from raydet.files.text import one_line

NUM_NAMED = 3
"""Most files that one message names."""

Files = Mapping[str, Path | DataError]
"""Files by the image's name; for a file that must not be read, the error."""


def paired(
    listings: Mapping[str, Files],
    *,
    where: Path,
    remedy: str,
    bad_samples: BadSamples,
    names: Sequence[str] | None = None,
) -> dict[str, dict[str, Path]]:
    """The images that have a file of every kind: paths by image name and kind.

    Args:
        listings: for each kind ("rgb", "label"), files by the image's name.
        where: the set, for messages.
        remedy: what to do about missing files.
        names: the images to use; default: all.

    Raises:
        DataError: a file is missing or must not be read, and bad samples are not skipped.
    """
    if names is None:
        names = sorted({name for files in listings.values() for name in files})
    pairs = {name: {kind: files.get(name) for kind, files in listings.items()} for name in sorted(set(names))}
    good: dict[str, dict[str, Path]] = {}
    missing: dict[str, list[str]] = {kind: [] for kind in listings}
    for name, files in pairs.items():
        paths = {kind: file for kind, file in files.items() if isinstance(file, Path)}
        bad = [file for file in files.values() if isinstance(file, DataError)]
        if len(paths) == len(listings):
            good[name] = paths
        elif bad:
            bad_samples.refuse(one_line(name), bad[0])
        else:
            for kind in listings.keys() - paths.keys():
                missing[kind].append(name)
    if bad_samples.on_bad == "error" and any(missing.values()):
        counts = ", ".join(f"{len(files)} {kind}" for kind, files in listings.items())
        gaps = ", ".join(f"{len(some)} without {kind}{named(some)}" for kind, some in missing.items() if some)
        raise DataError(f"{where}: expected one file of each kind per image, got {counts}: {gaps}; {remedy}")
    without = {kind: frozenset(some) for kind, some in missing.items()}
    for name in sorted(frozenset[str]().union(*without.values())):
        kinds = " and ".join(kind for kind, some in without.items() if name in some)
        bad_samples.refuse(name, DataError(f"{where}: image {name} has no {kinds} file; {remedy}"))
    return good


def named(names: Sequence[str]) -> str:
    """The first few names in parentheses, for a message.

    >>> named(["a", "b", "c", "d"])
    ' (a, b, c, ...)'
    """
    more = ", ..." if len(names) > NUM_NAMED else ""
    return f" ({', '.join(names[:NUM_NAMED])}{more})" if names else ""
