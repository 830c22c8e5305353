"""The shard format: round trip, reproducible bytes, and damage that is found where it is read."""

import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import PackConfig
from data_prep.index import (
    PackedIndex,
    Recipe,
    ShardEntry,
    ShardError,
    file_digest,
    read_index,
    shard_name,
    shard_recipe,
    write_index,
)
from data_prep.shard_writer import PackedSample, write_shard
from data_prep.shards import PackedSplit, open_shard

Samples = list[PackedSample]
HEIGHT, WIDTH = 150, 20  # three bands of 64 rows, the last one short


def make_samples(seed: int, count: int, height: int, width: int) -> Samples:
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        labels, full = (
            rng.integers(0, 256, s, dtype=np.uint8) for s in ((height, width), (13, 17))
        )
        samples.append(PackedSample(image, labels, full))
    return samples


def write_split(folder: Path, samples: Samples, per_shard: int, keys: list[str]) -> PackedSplit:
    """Write a packed set of one split, 'val', and open it."""
    height, width = samples[0].labels.shape
    config = PackConfig(height=height, width=width, images_per_shard=per_shard)
    recipe = Recipe(source="synthia", fingerprint="f", pack=config)
    entries = []
    for number, start in enumerate(range(0, len(samples), per_shard)):
        path = folder / shard_name("val", number)
        part, names = samples[start : start + per_shard], keys[start : start + per_shard]
        sizes = [(13, 17)] * len(part)
        write_shard(path, shard_recipe(recipe, "val", number), names, sizes, iter(part))
        size, digest = path.stat().st_size, file_digest(path)
        entries.append(ShardEntry(file=path.name, bytes=size, xxh3_64=digest, keys=names))
    write_index(folder, PackedIndex(format_version=1, recipe=recipe, splits={"val": entries}))
    return PackedSplit(folder, "val")


@pytest.fixture
def split(tmp_path: Path) -> PackedSplit:
    """5 samples of 150 x 20 pixels in 3 shards."""
    keys = [f"sample{i}" for i in range(5)]
    return write_split(tmp_path / "packed", make_samples(0, 5, HEIGHT, WIDTH), 2, keys)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def offset_of(path: Path, name: str) -> int:
    with h5py.File(path, "r") as file:
        return int(file[name].id.get_offset())


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(8, 140),
    width=st.integers(8, 20),
    per_shard=st.integers(1, 4),
    keys=st.lists(
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=9),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    data=st.data(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    per_shard: int,
    keys: list[str],
    data: Any,
) -> None:
    samples = make_samples(height, len(keys), height, width)
    folder = tmp_path_factory.mktemp("round_trip")
    split = write_split(folder, samples, per_shard, keys)
    assert (len(split), split.keys, split.height, split.width) == (len(keys), keys, height, width)
    begin = data.draw(st.integers(0, height - 1))
    rows = slice(begin, data.draw(st.integers(begin, height)))
    cols = slice(data.draw(st.integers(0, width - 1)), width)
    for i, (image, labels, full) in enumerate(samples):
        assert (split.image(i) == image).all() and (split.labels(i) == labels).all()
        assert np.array_equal(split.image(i, rows, cols), image[rows, cols])
        assert np.array_equal(split.labels(i, rows=rows), labels[rows])
        assert np.array_equal(split.labels_full(i), full)
        assert split.original_size(i) == (13, 17)
    shutil.rmtree(folder)


def test_reads_are_copies_and_standard_hdf5_reads_the_same(split: PackedSplit) -> None:
    image = split.image(3)
    image[:] = 0
    assert split.image(3).any() and image.flags.c_contiguous and image.flags.owndata
    with h5py.File(split.packed_dir / "val-00001.h5", "r") as file:
        assert (file["images"][1] == split.image(3)).all()
        assert (file["labels"][1] == split.labels(3)).all()
        assert file["keys"].asstr()[1] == "sample3" and file["sizes"][1].tolist() == [13, 17]
        assert file["images"].chunks is None and file["image_digests"].shape == (2, 3)


def test_same_samples_same_bytes(tmp_path: Path, split: PackedSplit) -> None:
    again = write_split(tmp_path / "b", make_samples(0, 5, HEIGHT, WIDTH), 2, split.keys)
    files = sorted(path.name for path in split.packed_dir.iterdir())
    assert files == ["index.json", "val-00000.h5", "val-00001.h5", "val-00002.h5"]
    for name in files:
        assert (split.packed_dir / name).read_bytes() == (again.packed_dir / name).read_bytes()
    # Both were written within a second or so, the unit of HDF5's time stamps: there must be none.
    with h5py.File(split.packed_dir / "val-00000.h5", "r") as file:
        for name in file:
            assert not file[name].id.get_create_plist().get_obj_track_times(), name


def test_damage_is_found_in_the_rows_that_are_read(split: PackedSplit) -> None:
    path = split.packed_dir / "val-00001.h5"
    flip(path, offset_of(path, "images") + (HEIGHT + 70) * WIDTH * 3)  # sample 3, row 70
    split.image(3, rows=slice(0, 64))
    split.image(3, rows=slice(128, 150))
    split.image(2)
    for rows in (None, slice(0, 65), slice(127, 128)):
        with pytest.raises(
            ShardError,
            match=r"val-00001.h5: sample 'sample3': rows 64..127 of images do not match .*damaged; "
            r"delete the file and run `python -m data_prep.pack` again",
        ):
            split.image(3, rows=rows)
    PackedSplit(split.packed_dir, "val", verify=False).image(3)


def test_damaged_labels_are_found(split: PackedSplit) -> None:
    path = split.packed_dir / "val-00000.h5"
    flip(path, offset_of(path, "labels"))
    flip(path, offset_of(path, "labels_full") + 13 * 17)
    with pytest.raises(ShardError, match=r"'sample0': rows 0..63 of labels do not match"):
        split.labels(0)
    split.labels_full(0)
    with pytest.raises(ShardError, match=r"'sample1': the full-size labels do not match"):
        split.labels_full(1)


def test_missing_truncated_and_swapped_shards(split: PackedSplit) -> None:
    shards = [split.packed_dir / f"val-0000{i}.h5" for i in range(3)]
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(ShardError, match=r"val-00000.h5: cannot be read as a shard .*delete"):
        split.image(0)
    shutil.copy(shards[2], shards[0])
    with pytest.raises(ShardError, match=r"not the shard that the index means: shard: found 2"):
        split.image(0)
    shards[1].unlink()
    with pytest.raises(ShardError, match=r"val-00001.h5: not there, though the index names it"):
        split.image(2)


def test_the_index_says_what_is_wrong(split: PackedSplit, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"has no split 'train'; it has: val"):
        PackedSplit(split.packed_dir, "train")
    path = split.packed_dir / "index.json"
    text = path.read_text()
    for old, new, message in (
        ('"format_version": 1', '"format_version": 2', "format_version 2, expected 1"),
        ("sample3", "sample8", "does not match its own digest"),
        ("{", "[", "damaged or edited"),
    ):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ShardError, match=message):
            read_index(split.packed_dir)
    path.unlink()
    with pytest.raises(ShardError, match=r"index.json: not there: packing has not finished"):
        PackedSplit(split.packed_dir, "val")


def test_wrong_use_is_refused(split: PackedSplit, packed_synthia: Path) -> None:
    for i in (-1, 5):
        with pytest.raises(IndexError, match=rf"sample {i} of 5"):
            split.image(i)
    with pytest.raises(ValueError, match="step 1"):
        split.image(0, rows=slice(0, 10, 2))
    with pytest.raises(ValueError, match="packed for 'val' only"):
        PackedSplit(packed_synthia, "train").labels_full(0)


def _read_sum(split: PackedSplit) -> int:
    return int(split.image(4).sum())


def test_a_used_reader_works_after_fork_and_pickling(split: PackedSplit) -> None:
    expected = _read_sum(split)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_sum, [split] * 4) == [expected] * 4
    assert len(pickle.dumps(split)) < 5000
    parent_end, child_end = multiprocessing.Pipe()

    def child() -> None:  # inherits the open memory maps, unlike the pool's pickled readers
        child_end.send(_read_sum(split))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert parent_end.recv() == expected
    process.join()
    assert process.exitcode == 0


def test_a_failed_write_leaves_nothing(tmp_path: Path, split: PackedSplit) -> None:
    sample = make_samples(0, 1, HEIGHT, WIDTH)[0]

    def failing() -> Any:
        yield sample
        raise OSError("disk gone")

    recipe, path = open_shard(split.packed_dir / "val-00000.h5").recipe, tmp_path / "val-00000.h5"
    with pytest.raises(OSError, match="disk gone"):
        write_shard(path, recipe, ["a", "b"], [(13, 17)] * 2, failing())
    # A sample too few is found when the file is read back, before it gets its name.
    with pytest.raises(ShardError, match=r"'b': rows 0..63 of images do not match"):
        write_shard(path, recipe, ["a", "b"], [(13, 17)] * 2, iter([sample]))
    assert list(tmp_path.iterdir()) == [split.packed_dir]
