"""Conversion: the same bytes after any interruption, nothing mixed, what is left out is counted."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raydet.cli import main
from raydet.config import DataConfig, EventSimulation, NpyYoloSource, ShardsSource
from raydet.data.build import adopt_source, detect_source, open_source
from raydet.data.convert import PLAN, Job, convert
from raydet.data.shards.layout import shard_name
from raydet.data.shards.manifest import INDEX, LEFT_OUT, MANIFEST
from raydet.data.shards.reader import ShardSet
from raydet.data.shards.writer import ShardBuilder
from raydet.data.storage import UNFINISHED
from raydet.errors import EXIT_INTERRUPTED, ConfigError, DataError
from raydet.recipes import recipe
from tests.unit.data.shards.sets import CLASSES, data


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


class StoppedError(Exception):
    """Stands for the end of the process."""


def test_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = convert(data(), str(tmp_path / "whole"), images_per_shard=2)
    part = tmp_path / "part"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        convert(data(), str(part), images_per_shard=2, report=stop)
    assert not (part / MANIFEST).exists()
    with pytest.raises(DataError, match="finish the conversion"):
        ShardSet(str(part))
    (part / shard_name(1)).write_bytes(b"a shard that was damaged meanwhile")
    written = []
    monkeypatch.setattr(
        Job,
        "write_shard",
        lambda job, number, write=Job.write_shard: written.append(number) or write(job, number),
    )
    again = convert(data(), str(part), images_per_shard=2)
    assert written == [1, 2]
    assert again == whole
    assert contents(part) == contents(tmp_path / "whole")
    assert sorted(contents(part)) == ["index.arrow", "manifest.json", *map(shard_name, range(3))]
    assert convert(data(), str(part), images_per_shard=2) == whole
    assert written == [1, 2], "what is finished is not done again"


@pytest.mark.parametrize("is_finished", [True, False])
def test_another_source_or_setting_is_refused(is_finished: bool, tmp_path: Path) -> None:
    convert(data(), str(tmp_path), images_per_shard=2)
    if not is_finished:
        plan = json.loads((tmp_path / MANIFEST).read_text())["plan"]
        (tmp_path / MANIFEST).unlink()
        (tmp_path / PLAN).parent.mkdir()
        (tmp_path / PLAN).write_text(json.dumps(plan))
    for change, named in (
        ({"encoding": "raw"}, "encoding"),
        ({"images_per_shard": 3}, "images_per_shard"),
    ):
        with pytest.raises(ConfigError, match=f"{named} differ.*--overwrite"):
            convert(data(), str(tmp_path), **{"images_per_shard": 2} | change)
    with pytest.raises(ConfigError, match="annotations_sha256"):
        convert(data(num_sequences=2), str(tmp_path), images_per_shard=2)
    found = convert(data(num_sequences=2), str(tmp_path), images_per_shard=2, overwrite=True)
    assert sorted(contents(tmp_path)) == ["index.arrow", "manifest.json", *map(shard_name, range(2))]
    assert found.images == len(ShardSet(str(tmp_path))) == 4


def test_shards_of_nobody_knows_what_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / shard_name(0)).write_bytes(b"?")
    with pytest.raises(ConfigError, match="unknown conversion"):
        convert(data(), str(tmp_path))


def test_what_is_left_out_is_listed_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for number in range(5):
        pixels = np.full((40, 48, 5), number, dtype=np.float32)
        if number == 3:
            pixels[0, 0, 0] = np.nan  # found as pixels are read, not before
        np.save(root / "images" / f"{number}.npy", pixels)
        (root / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    config = DataConfig(source=NpyYoloSource(root=str(root)), classes=("person",), canvas_hw=(64, 64))
    with pytest.raises(DataError, match=r"3\.npy"):
        convert(config, str(tmp_path / "error"), images_per_shard=2)
    found = convert(config, str(tmp_path / "skip"), images_per_shard=2, on_bad="skip")
    assert (found.images, found.left_out, found.boxes) == (4, 1, {"person": 4})
    [line] = (tmp_path / "skip" / LEFT_OUT).read_text().splitlines()
    assert json.loads(line)["name"] == "3"
    assert "3.npy" in json.loads(line)["reason"]
    source = ShardSet(str(tmp_path / "skip"))
    assert list(source.image_ids) == ["0", "1", "2", "4"]
    assert torch.all(source.read(3).modalities["rgb"] == 4 / 255)
    assert [shard.images for shard in found.shards] == [2, 1, 1]


def test_a_set_of_which_nothing_is_left_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise DataError("no image")

    monkeypatch.setattr("raydet.data.synthetic.SyntheticSet.read", broken)
    with pytest.raises(DataError, match="all 6 were left out, the first: no image"):
        convert(data(), str(tmp_path), on_bad="skip")
    assert not (tmp_path / MANIFEST).exists()


def test_data_names_a_directory_of_shards(tmp_path: Path) -> None:
    manifest = convert(data(), str(tmp_path))
    assert detect_source(str(tmp_path)) == detect_source(f"shards:{tmp_path}")
    assert manifest.classes == CLASSES


@pytest.mark.parametrize("overwrite", [True, False])
def test_the_source_is_not_replaced_by_itself(overwrite: bool, tmp_path: Path) -> None:
    manifest = convert(data(), str(tmp_path / "set"))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    config = data().model_copy(update={"source": ShardsSource(path=str(tmp_path / "set"))})
    before = contents(tmp_path)
    for place in ("set", "set/", "link", "../" + tmp_path.name + "/set"):
        with pytest.raises(ConfigError, match="the destination must differ from the source"):
            convert(config, f"{tmp_path}/{place}", overwrite=overwrite)
    assert contents(tmp_path) == before
    assert convert(config, str(tmp_path / "other")).content_sha256 == manifest.content_sha256


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ((), "interrupted; the same command continues\n"),
        (("--overwrite",), "interrupted; the same command without --overwrite continues\n"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    flags: tuple[str, ...],
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "write_shard", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(("data", "convert", "synthetic", str(tmp_path), *flags))
    assert caught.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr().err.endswith(hint)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (shard_name(1), Path.unlink),
        (shard_name(1), lambda path: path.write_bytes(b"short")),
        (shard_name(2), spoil),
        (INDEX, Path.unlink),
    ],
)
def test_a_finished_set_that_was_damaged_is_written_again(
    name: str, damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = convert(data(), str(tmp_path), images_per_shard=2)
    before = contents(tmp_path)
    damage(tmp_path / name)
    assert convert(data(), str(tmp_path), images_per_shard=2) == manifest
    assert f"{name} is missing or damaged" in caplog.text
    assert contents(tmp_path) == before


def test_a_record_of_another_conversion_ends_it(tmp_path: Path) -> None:
    def meddle(done: int, total: int) -> None:
        if done == total == 2:
            other = ShardBuilder(("rgb",), "zstd", num_classes=3).finish(plan="another", left_out=())[1]
            (tmp_path / "set" / UNFINISHED / "000001.arrow").write_bytes(other)

    with pytest.raises(DataError, match=r"000001\.arrow is missing or another conversion's"):
        convert(data(), str(tmp_path / "set"), images_per_shard=3, report=meddle)


def test_what_cannot_be_cleared_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(Path, "rmdir", busy)
    assert convert(data(), str(tmp_path)).images == len(ShardSet(str(tmp_path)))


def test_drafts_of_a_killed_process_are_cleared_away(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raydet.data.storage.Path.replace", stopped)
        with pytest.raises(StoppedError):
            convert(data(), str(tmp_path))
    assert len(contents(tmp_path)) == 1
    convert(data(), str(tmp_path))
    assert sorted(contents(tmp_path)) == ["index.arrow", "manifest.json", shard_name(0)]


def stopped(*_: object) -> None:
    raise StoppedError


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(tmp_path: Path) -> None:
    sets = (
        "data.source.num_sequences=8",
        "data.source.frames_per_sequence=8",
        "data.source.size_hw=[480,640]",
    )
    command = [sys.executable, "-m", "raydet", "data", "convert", "synthetic", str(tmp_path / "killed")]
    command += ["--images-per-shard", "1", *(part for text in sets for part in ("--set", text))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("killed/shard-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert 0 < len(list(tmp_path.glob("killed/shard-*"))) < 24
    assert not (tmp_path / "killed" / MANIFEST).exists()
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ))
    command[command.index(str(tmp_path / "killed"))] = str(tmp_path / "whole")
    subprocess.run(command, check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_simulated_events_are_called_so_after_the_conversion(tmp_path: Path) -> None:
    simulated = data().model_copy(update={"simulate_events": EventSimulation(replaces_own=True)})
    assert convert(simulated, str(tmp_path / "set")).simulated == ("event",)
    adopted = adopt_source(recipe("demo"), ShardsSource(path=str(tmp_path / "set"))).data
    assert adopted.simulated == ("event",)
    assert torch.equal(
        open_source(adopted).read(0).modalities["event"], open_source(simulated).read(0).modalities["event"]
    )
    by_hand = adopted.model_copy(update={"source": ShardsSource(path=str(tmp_path / "set"))})
    with pytest.raises(ConfigError, match=r"data\.source\.simulated"):
        open_source(by_hand)
