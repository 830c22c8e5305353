"""`data_prep.validate` says what a packed set holds, and everything that is wrong with it."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_data import flip, make_samples, write_split

from data_prep.config import PackConfig
from data_prep.index import file_digest, read_index, write_index
from data_prep.pack import pack
from data_prep.shard_file import read_extents
from data_prep.shard_writer import shard_entry
from data_prep.shards import PackedSplit
from data_prep.survey import PackJob
from data_prep.validate import main

pytestmark = pytest.mark.usefixtures("_no_launcher")
Captured = pytest.CaptureFixture[str]


def rows(out: str) -> dict[str, list[str]]:
    """The lines of the tables: first word or words -> the columns after it."""
    found = {}
    for line in out.splitlines():
        name, *columns = [part.strip() for part in line.strip().split("  ") if part]
        found[name] = columns
    return found


def test_a_good_set_and_its_shares(packed_cityscapes: Path, capsys: Captured) -> None:
    assert main([str(packed_cityscapes), "--class-set", "camvid11"]) == 0
    out, err = capsys.readouterr()
    assert not err and out.endswith("all is well\n") and "warning" not in out
    table = rows(out)
    for split, samples, shards in (("train", "7", "3"), ("val", "4", "2")):
        assert table[split][:3] == [samples, shards, "0"]
        statistics = PackedSplit(packed_cityscapes, split).statistics
        shown = [float(value) for column in table[split][-2:] for value in column.split()]
        assert shown == pytest.approx(statistics.channel_mean + statistics.channel_std, abs=6e-4)
    first = list(table).index("class") + 1
    shares = {name: [*map(float, table[name])] for name in list(table)[first:-1]}
    assert len(shares) == 12
    assert np.sum(list(shares.values()), 0) == pytest.approx([100, 100], abs=0.1)
    assert shares["fence"] == [0, 0] and min(shares["sky"]) > 0
    # Ids 0 and 1 are the ignored ones of the tiny data set.
    for column, name in enumerate(("train", "val")):
        split = PackedSplit(packed_cityscapes, name)
        ignored = np.mean([split.labels(i) <= 1 for i in range(len(split))])
        assert shares["ignored"][column] == pytest.approx(100 * ignored, abs=0.01)


def test_damage_of_every_kind_is_one_line(packed_copy: Path, capsys: Captured) -> None:
    pixels, metadata, truncated, missing = (
        packed_copy / name
        for name in ("train-00000.h5", "train-00001.h5", "train-00002.h5", "val-00000.h5")
    )
    flip(pixels, read_extents(pixels)["images"][0] + 24 * 32 * 3)
    flip(metadata, 60)
    truncated.write_bytes(truncated.read_bytes()[:-1])
    missing.unlink()
    assert main([str(packed_copy)]) == 1
    out, err = capsys.readouterr()
    table = rows(out.split("share of")[0])
    assert table["train"][:3] == ["7", "3", "3"] and table["val"][:3] == ["3", "1", "1"]
    assert "all is well" not in out
    for line, parts in zip(
        err.splitlines(),
        [
            (f"{pixels}: sample '0000003': rows 0..23 of images do not match", "delete the file"),
            (f"{metadata}: damaged, ", "bytes outside the pixels", "delete the file and run"),
            (f"{truncated}: damaged, ", " bytes, expected ", "delete the file and run"),
            (f"{missing}: not there, though the index names it; run", "missing shards only"),
        ],
        strict=True,
    ):
        assert line.startswith(f"error: {parts[0]}") and all(part in line for part in parts)


def test_a_damaged_index_and_an_unfinished_set(packed_copy: Path, capsys: Captured) -> None:
    index = packed_copy / "index.json"
    index.write_text(index.read_text().replace('"0000003"', '"0000013"'))
    assert main([str(packed_copy)]) == 1
    expected = f"error: {index}: damaged or edited: its content does not match its own digest; del"
    assert capsys.readouterr().err.startswith(expected)
    index.unlink()
    assert main([str(packed_copy)]) == 1
    assert "index.json: not there: packing has not finished" in capsys.readouterr().err


def test_swapped_shards(packed_copy: Path, packed_cityscapes: Path, capsys: Captured) -> None:
    for name in ("train-00000.h5", "val-00000.h5"):
        shutil.copy(packed_cityscapes / name, packed_copy)
    assert main([str(packed_copy)]) == 1
    for line, name in zip(capsys.readouterr().err.splitlines(), ("train", "val"), strict=True):
        assert f"{name}-00000.h5: damaged, or another shard than expected: " in line


def test_what_digests_cannot_show(tmp_path: Path, capsys: Captured) -> None:
    """Sets that are as they were written, by a writer that was wrong."""
    samples = make_samples(0, 8, 9, [(8, 9)] * 4)
    keys = ["a", "b", "c", "d"]

    def errors(packed: Path) -> str:
        capsys.readouterr()
        assert main([str(packed)]) == 1
        return capsys.readouterr().err

    short = write_split(tmp_path / "short", samples, 2, keys, claimed_per_shard=3)
    assert "val-00000.h5: 2 samples, expected 3; pack the data set again" in errors(
        short.packed_dir
    )
    twice = write_split(tmp_path / "twice", samples, 2, ["a", "b", "c", "a"])
    assert "a key stands twice in the index" in errors(twice.packed_dir)

    wrong = write_split(tmp_path / "wrong", samples, 4, keys).packed_dir
    index = read_index(wrong)
    statistics = index.statistics["val"].model_copy(update={"channel_mean": [0.5, 0.5, 0.5]})
    write_index(wrong, index.model_copy(update={"statistics": {"val": statistics}}))
    assert "the statistics of split 'val' in the index are not those of its" in errors(wrong)
    with h5py.File(wrong / "val-00000.h5", "r+") as file:
        file["label_histograms"][2, 0] += 1
    path = wrong / "val-00000.h5"
    entry = shard_entry(path, keys, file_digest(path))
    write_index(wrong, index.model_copy(update={"splits": {"val": [entry]}}))
    assert "val-00000.h5: sample 'c': the histograms do not match" in errors(wrong)


def test_images_that_are_there_twice(synthia_copy: Path, tmp_path: Path, capsys: Captured) -> None:
    config = PackConfig(height=24, width=32, val_images=3)  # 0000000, 0000002 and 0000006
    images = synthia_copy / "RAND_CITYSCAPES" / "RGB"
    shutil.copy(images / "0000001.png", images / "0000004.png")
    pack(PackJob("synthia", synthia_copy, tmp_path / "twins", config, subset=True))
    assert main([str(tmp_path / "twins")]) == 0  # a warning: some data sets have them
    [warning] = [line for line in capsys.readouterr().out.splitlines() if "share" in line][1:]
    assert warning == (
        "warning: train: 2 samples share their image with another one, such as 0000001 and 0000004"
    )
    shutil.copy(images / "0000001.png", images / "0000002.png")
    pack(PackJob("synthia", synthia_copy, tmp_path / "leak", config, subset=True))
    assert main([str(tmp_path / "leak")]) == 0
    assert (
        "warning: 1 images of val are in train too, such as 0000002 and 0000001: scores on val "
        "are of images that were trained on\n"
    ) in capsys.readouterr().out


def test_unknown_class_set(packed_synthia: Path, capsys: Captured) -> None:
    assert main([str(packed_synthia), "--class-set", "nope"]) == 1
    assert "no 'nope' there; there are:" in capsys.readouterr().err
