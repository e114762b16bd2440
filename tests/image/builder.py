"""Builds the Dockerfile as it stands, without a container engine: buildah wants no daemon, each step runs in a chroot.

The base is made here, for no registry of images can be asked: mmdebstrap's minimal Debian holds what the published
image holds. What this machine needs to reach its package registries is put into that base, as into a company's own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = ("buildah", "mmdebstrap", "unshare", "ip")
FREE_GIB = 30  # wheels, their files, and two stages that hold them

# How a machine may be told where its registries are; what is set here is set in the base.
REGISTRIES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
CERTIFICATES = "/etc/ssl/certs/of-the-builder.crt"


def missing(store: Path) -> str | None:
    """Why no image can be built under `store`, or None."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: apt-get install buildah mmdebstrap iproute2)"
    if os.geteuid() != 0:
        return "a chroot wants root"
    free_gib = shutil.disk_usage(store).free / 2**30
    return f"{FREE_GIB} GiB wanted, {free_gib:.0f} GiB free" if free_gib < FREE_GIB else None


@dataclass(frozen=True)
class Builder:
    """A store of images of its own; `remove` leaves nothing of it."""

    store: Path

    def buildah(self, *words: str) -> list[str]:
        places = [f"--root={self.store / 'images'}", f"--runroot={self.store / 'run'}"]
        return ["buildah", *places, "--storage-driver=overlay", *words]

    def call(self, *words: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Both streams come back in stdout."""
        scratch = self.store / "tmp"  # also holds the cache mounts
        scratch.mkdir(exist_ok=True)
        return subprocess.run(
            words,
            env=os.environ | {"TMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )

    def must(self, *words: str, timeout_s: float = 900) -> str:
        done = self.call(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}"
        return done.stdout.strip()

    def make_base(self, release: str) -> str:
        """The name of an image of a minimal Debian `release`, with this machine's way to its registries."""
        root = self.store / "base.tar"
        self.must("mmdebstrap", "--quiet", "--variant=minbase", release, str(root), timeout_s=1800)
        container = self.must(*self.buildah("from", "scratch"))
        self.must(*self.buildah("add", "--quiet", container, str(root)))
        root.unlink()
        settings = [f"{name}={os.environ[name]}" for name in REGISTRIES if name in os.environ]
        if certificates := os.environ.get("SSL_CERT_FILE"):
            self.must(*self.buildah("copy", "--quiet", container, certificates, CERTIFICATES))
            settings += [f"SSL_CERT_FILE={CERTIFICATES}", f"PIP_CERT={CERTIFICATES}"]
        for setting in settings:
            self.must(*self.buildah("config", "--env", setting, container))
        self.must(*self.buildah("commit", "--quiet", "--rm", container, "localhost/base"))
        return "localhost/base"

    def build(self, context: Path, base: str, *options: str) -> subprocess.CompletedProcess[str]:
        """What `docker build -t raydet --build-arg BASE=... OPTIONS context` does."""
        how = ["--isolation=chroot", "--format=docker", "--pull-never", "--layers", "--tag=raydet"]
        command = self.buildah("bud", *how, f"--build-arg=BASE={base}", *options, str(context))
        return self.call(*command, timeout_s=7200)

    def config(self) -> dict[str, Any]:
        """User, Env, Healthcheck, Cmd and so on of the image that was built."""
        return dict(json.loads(self.must(*self.buildah("inspect", "raydet")))["Docker"]["config"])

    def start(self) -> str:
        """A container of the image that was built; its name for `run`."""
        return self.must(*self.buildah("from", "--pull-never", "raydet"))

    def run(self, container: str, *words: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """`words` as the image's user, with processes, shared memory and a loopback of their own, and no network.

        What still runs when `words` have ended is ended, too.
        """
        alone = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        setup = "ip link set lo up && mount -t tmpfs -o mode=1777,size=2g tmpfs /dev/shm"
        inside = self.buildah("run", "--isolation=chroot", container, "--", *words)
        return self.call(*alone, "sh", "-c", f'{setup} && exec "$@"', "sh", *inside, timeout_s=timeout_s)

    def remove(self) -> None:
        self.must(*self.buildah("rm", "--all"))
        self.must(*self.buildah("rmi", "--all", "--force"))
        shutil.rmtree(self.store)
