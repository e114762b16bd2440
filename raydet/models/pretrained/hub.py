"""Weights by name from the Hugging Face hub, kept in its cache: `hf://nvidia/mit-b1`, `timm://resnet50.a1_in1k`.

`hf://OWNER/NAME`, then, if wanted, `@REVISION` (a branch, a tag or a commit) and `/FILE`. Without a file it is the
repository's model.safetensors, else its pytorch_model.bin. `timm://NAME` is the repository that timm names for its
model and tag. With a network, the hub is asked whether the revision has moved; without one (`HF_HUB_OFFLINE=1`), the
cache is all there is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from raydet.errors import ConfigError
from raydet.models.backbones.timm import timm_repository

SCHEMES = ("hf", "timm")
FILES = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in the cache, and where it is from: `nvidia/mit-b1@<commit>/model.safetensors`."""

    path: Path
    origin: str


def fetch(name: str) -> HubFile:
    """Download a file of weights, unless the cache has it.

    Args:
        name: `hf://...` or `timm://...`, see the module.

    Raises:
        ConfigError: the name is malformed or unknown, or the file is neither in the cache nor to be had.
    """
    # Not at the top, as it reads its environment when it is imported.
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub import errors as hub

    address = name
    if name.startswith("timm://"):
        address = f"hf://{timm_repository(name.removeprefix('timm://'))}"
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?", address)
    if match is None or (match[3] and not match[3].endswith(SUFFIXES)):
        raise ConfigError(
            f"expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/FILE, where FILE ends in "
            f"{', '.join(SUFFIXES)}"
        )
    repository, revision, file = match.groups()
    candidates = [file] if file else FILES
    reason = ""
    for candidate in candidates:
        try:
            # A hub that has not answered, after half a minute of attempts, is not asked again.
            path = hf_hub_download(repository, candidate, revision=revision, local_files_only=bool(reason))
        except hub.LocalEntryNotFoundError:
            reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub does not answer"
        except hub.EntryNotFoundError:
            continue
        except hub.GatedRepoError as error:
            raise ConfigError(
                f"{repository} is gated; accept its conditions on the hub, then run `hf auth login`"
            ) from error
        except hub.RepositoryNotFoundError as error:
            raise ConfigError(
                f"the hub has no {repository}, or it is private; correct the name, or run `hf auth login`"
            ) from error
        except hub.RevisionNotFoundError as error:
            raise ConfigError(
                f"{repository} has no revision {revision}; name a branch, tag or commit"
            ) from error
        except (hub.HfHubHTTPError, OSError, ValueError) as error:
            reason = f"the download failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        else:
            commit = Path(path).parents[len(Path(candidate).parts) - 1].name
            return HubFile(Path(path), f"{repository}@{commit}/{candidate}")
    expected = " or ".join(candidates)
    if not reason:
        raise ConfigError(f"{repository} has no {expected}; name a file: hf://{repository}/FILE")
    at = f" --revision {revision}" if revision else ""
    raise ConfigError(
        f"{reason}, and the cache has no {expected} of {repository}; on a machine with web access run "
        f"`hf download {repository} {candidates[0]}{at}`, copy the file here, and set its path (a .bin, .pth or .pt "
        "file: after `raydet weights convert FILE`)"
    )
