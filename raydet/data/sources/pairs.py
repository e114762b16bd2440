"""Files that belong together by their names: a picture's modalities and its labels, from several directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raydet.data.sources.sieve import Sieve
from raydet.errors import DataError

NUM_NAMED = 3
"""Files named in a message that concerns many."""

Files = Mapping[str, Path]


def paired(
    listings: Mapping[str, Files],
    *,
    where: Path,
    remedy: str,
    sieve: Sieve,
    names: Sequence[str] | None = None,
) -> dict[str, dict[str, Path]]:
    """The pictures that have a file in every listing: by name, the file of each listing.

    Args:
        listings: by the name of a listing ("rgb", "labels"), files by the picture's name.
        where: the set, for messages.
        remedy: what to do about missing files.
        names: the pictures to take; default: all.

    Raises:
        DataError: a file is missing. With a sieve that skips, the picture is left out.
    """
    if names is None:
        names = list(dict.fromkeys(name for files in listings.values() for name in files))
    lacking = {kind: [name for name in names if name not in files] for kind, files in listings.items()}
    if sieve.on_bad == "error" and any(lacking.values()):
        shown = ", ".join(f"{len(files)} {kind}" for kind, files in listings.items())
        holes = ", ".join(
            f"{len(missing)} without {kind}{named(missing)}" for kind, missing in lacking.items() if missing
        )
        raise DataError(f"{where}: wanted one file of each kind per picture, got {shown}: {holes}; {remedy}")
    for name in sorted({name for missing in lacking.values() for name in missing}):
        kinds = " and ".join(kind for kind, files in listings.items() if name not in files)
        sieve.leave_out(name, f"{where}: picture {name} has no {kinds} file; {remedy}")
    return {
        name: {kind: files[name] for kind, files in listings.items()}
        for name in sorted(names)
        if all(name in files for files in listings.values())
    }


def named(names: Sequence[str]) -> str:
    """The first of many, for a message.

    >>> named(["a", "b", "c", "d"])
    ' (a, b, c, ...)'
    """
    more = ", ..." if len(names) > NUM_NAMED else ""
    return f" ({', '.join(names[:NUM_NAMED])}{more})" if names else ""
