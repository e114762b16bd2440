"""The cache of a machine: fetched once, verified, bounded."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raydet.data.cache import ShardCache
from raydet.data.shards.reader import ShardSet
from raydet.data.storage import Store
from raydet.errors import ConfigError, DataError
from tests.unit.data.shards.sets import image, write_set


class Remote(Store):
    """Object storage of this process: files by name, and how often each was read."""

    directory = None

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__("s3://bucket/set")
        self.files, self.reads = files, 0

    def chunks(self, name: str) -> Iterator[bytes]:
        self.reads += 1
        content = self.files[name]
        time.sleep(0.02)
        yield content[: len(content) // 2]
        if self.reads in self.losses:
            raise OSError("AWS Error NETWORK_CONNECTION: curlCode: 56")
        yield content[len(content) // 2 :]

    losses: tuple[int, ...] = ()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetched(cache: ShardCache, store: Remote, name: str) -> Path:
    content = store.files[name]
    return cache.fetched(store, name, sha256(content), len(content))


def test_many_readers_fetch_a_file_once(tmp_path: Path) -> None:
    cache, store = ShardCache(tmp_path, 2**20), Remote({"a": b"content"})
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetched(cache, store, "a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.reads == 1
    assert {path.read_bytes() for path in paths} == {b"content"}
    assert len(paths) == 8


def test_a_lost_connection_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, store = ShardCache(tmp_path, 2**20), Remote({"a": b"content"})
    store.losses = (1,)
    assert fetched(cache, store, "a").read_bytes() == b"content"
    assert store.reads == 2
    assert (
        "reading s3://bucket/set/a failed (AWS Error NETWORK_CONNECTION: curlCode: 56); trying again in 0.5 s"
        in (caplog.text)
    )


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDET_STORAGE_PATIENCE_S", "0")
    cache, store = ShardCache(tmp_path, 2**20), Remote({"a": b"content"})
    store.losses = (1,)
    with pytest.raises(DataError, match="failed for 0 s: AWS Error NETWORK_CONNECTION"):
        fetched(cache, store, "a")
    assert list((tmp_path / "files").iterdir()) == []


def test_an_altered_file_is_not_kept(tmp_path: Path) -> None:
    cache, store = ShardCache(tmp_path, 2**20), Remote({"a": b"content"})
    with pytest.raises(DataError, match=r"s3://bucket/set/a: expected sha256"):
        cache.fetched(store, "a", sha256(b"c0ntent"), 7)
    assert list((tmp_path / "files").iterdir()) == []


def test_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    cache, store = ShardCache(tmp_path, 250), Remote({name: name.encode() * 100 for name in "abc"})
    paths = {name: fetched(cache, store, name) for name in "ab"}
    for age_s, name in ((3000, "b"), (5000, "a")):
        used = time.time() - age_s
        os.utime(paths[name], (used, used))
    fetched(cache, store, "a")  # used again
    third = fetched(cache, store, "c")
    assert [path.exists() for path in (paths["a"], paths["b"], third)] == [True, False, True]
    assert fetched(cache, store, "b").read_bytes() == b"b" * 100


def test_a_size_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDET_CACHE_GIB", "much")
    with pytest.raises(ConfigError, match="RAYDET_CACHE_GIB must be a number of GiB, got 'much'"):
        ShardCache.of_machine()


@pytest.mark.parametrize(
    "meddle",
    [
        lambda path: path.write_bytes(b"cont"),
        lambda path: path.unlink(),
    ],
    ids=["short", "gone"],
)
def test_what_is_not_whole_is_fetched_anew(meddle: Callable[[Path], object], tmp_path: Path) -> None:
    cache, store = ShardCache(tmp_path, 2**20), Remote({"a": b"content"})
    meddle(fetched(cache, store, "a"))
    assert fetched(cache, store, "a").read_bytes() == b"content"
    assert store.reads == 2


def test_a_file_that_is_touched_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, store = ShardCache(tmp_path, 150), Remote({name: name.encode() * 100 for name in "ab"})
    first = fetched(cache, store, "a")
    os.utime(first, (1, 1))
    now = time.time()

    def touched_as_its_age_is_looked_at() -> float:
        os.utime(first)
        return now

    monkeypatch.setattr("raydet.data.cache.time.time", touched_as_its_age_is_looked_at)
    fetched(cache, store, "b")
    assert first.exists()


def test_a_file_that_goes_before_it_is_open_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set([image("a")], tmp_path / "set")
    store = Remote({path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()})
    monkeypatch.setenv("RAYDET_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("raydet.data.shards.reader.Store", lambda uri: store)
    monkeypatch.setattr(store, "read", store.files.get)
    times = 0

    def evicted(cache: ShardCache, *arguments: Any, fetch: Any = ShardCache.fetched) -> Path:
        nonlocal times
        times += 1
        path: Path = fetch(cache, *arguments)
        if times % 2 or is_always:
            path.unlink()
        return path

    is_always = False
    monkeypatch.setattr(ShardCache, "fetched", evicted)
    source = ShardSet("s3://bucket/set")
    assert source.read(0).image_id == "a"
    assert times == 4
    is_always = True
    with pytest.raises(DataError, match=r"index\.arrow: evicted from the cache"):
        ShardSet("s3://bucket/set")


@pytest.mark.parametrize("call", ["fcntl.flock", "os.utime", "os.fsync"])
def test_a_disk_that_cannot_be_a_cache_is_one_error(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(f"raydet.data.cache.{call}", refuse)
    with pytest.raises(DataError, match=r"cannot use the cache .*: No locks available; .*RAYDET_CACHE_DIR"):
        fetched(ShardCache(tmp_path, 2**20), Remote({"a": b"content"}), "a")
