"""The shard format and its reader: round trip, same bytes, damage, open files, child processes."""

import multiprocessing
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import contents, flip, make_samples, read_sum, write_split

from data_prep.index import ShardError, read_index, shard_recipe
from data_prep.shard_file import open_shard, read_extents
from data_prep.shard_writer import write_shard
from data_prep.shards import PackedSplit

HEIGHT, WIDTH = 150, 20  # three bands of 64 rows, the last one short
FULL = (13, 17)


@pytest.fixture
def split(tmp_path: Path) -> PackedSplit:
    """5 samples of 150 x 20 pixels in 3 shards."""
    keys = [f"sample{i}" for i in range(5)]
    return write_split(tmp_path / "packed", make_samples(0, HEIGHT, WIDTH, [FULL] * 5), 2, keys)


@settings(max_examples=12, deadline=None)
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
    side = st.integers(1, 30)
    sizes = [data.draw(st.tuples(side, side)) for _ in keys]
    samples = make_samples(height, height, width, sizes)
    folder = tmp_path_factory.mktemp("round_trip")
    split = write_split(folder, samples, per_shard, keys)
    assert (len(split), split.keys, split.height, split.width) == (len(keys), keys, height, width)
    begin = data.draw(st.integers(0, height - 1))
    rows = slice(begin, data.draw(st.integers(begin, height)))
    cols = slice(data.draw(st.integers(0, width - 1)), width)
    for i, (image, labels, full) in enumerate(samples):
        # The window first: that the rest is read later is what `checked` must get right.
        assert np.array_equal(split.image(i, rows, cols), image[rows, cols])
        assert np.array_equal(split.labels(i, rows=rows), labels[rows])
        assert np.array_equal(split.image(i), image) and np.array_equal(split.labels(i), labels)
        assert np.array_equal(split.labels_full(i), full)
        assert split.original_size(i) == sizes[i]
    shutil.rmtree(folder)


def test_reads_are_copies_and_standard_hdf5_reads_the_same(split: PackedSplit) -> None:
    image = split.image(3)
    image[:] = 0
    assert split.image(3).any() and image.flags.c_contiguous and image.flags.owndata
    with h5py.File(split.packed_dir / "val-00001.h5", "r") as file:
        assert (file["images"][1] == split.image(3)).all()
        assert (file["labels"][1] == split.labels(3)).all()
        assert file["keys"].asstr()[1] == "sample3" and file["sizes"][1].tolist() == [*FULL]
        assert file["images"].chunks is None and file["image_digests"].shape == (2, 3)
        assert file["image_histograms"][1].sum() == 3 * HEIGHT * WIDTH


def test_the_example_of_the_format_page_runs(split: PackedSplit, packed_synthia: Path) -> None:
    page = Path(__file__).parent.parent / "data_prep" / "FORMAT.md"
    code = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)[0]
    for reader in (split, PackedSplit(packed_synthia, "train")):
        entry = reader.entries[0]
        names: dict[str, Any] = {"path": reader.packed_dir / entry.file}
        exec(compile(code, str(page), "exec"), names)
        expected = shard_recipe(reader.recipe, reader.split, 0)
        assert names["recipe"] == expected and names["keys"] == entry.keys
        assert np.array_equal(names["image"], reader.image(0))
        assert np.array_equal(names["labels"], reader.labels(0))


def test_same_samples_same_bytes(tmp_path: Path, split: PackedSplit) -> None:
    samples = make_samples(0, HEIGHT, WIDTH, [FULL] * 5)
    again = write_split(tmp_path / "b", samples, 2, split.keys)
    before = contents(split.packed_dir)
    assert sorted(before) == ["index.json", "val-00000.h5", "val-00001.h5", "val-00002.h5"]
    assert contents(again.packed_dir) == before
    # Both were written within a second or so, the unit of HDF5's time stamps: there must be none.
    with h5py.File(split.packed_dir / "val-00000.h5", "r") as file:
        for name in file:
            assert not file[name].id.get_create_plist().get_obj_track_times(), name


def test_damage_is_found_in_the_rows_that_are_read(split: PackedSplit) -> None:
    path = split.packed_dir / "val-00001.h5"
    place = read_extents(path)["images"][0] + (HEIGHT + 70) * WIDTH * 3  # sample 3, row 70
    flip(path, place)
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
    flip(path, place)
    assert split.image(3).any()  # what was bad is compared again


def test_damaged_labels_are_found(split: PackedSplit) -> None:
    path = split.packed_dir / "val-00000.h5"
    places = read_extents(path)
    flip(path, places["labels"][0])
    flip(path, places["labels_full"][0] + 13 * 17)
    with pytest.raises(ShardError, match=r"'sample0': rows 0..63 of labels do not match"):
        split.labels(0)
    split.labels_full(0)
    with pytest.raises(ShardError, match=r"'sample1': the full-size labels do not match"):
        split.labels_full(1)


def test_missing_truncated_and_swapped_shards(split: PackedSplit) -> None:
    shards = [split.packed_dir / f"val-0000{i}.h5" for i in range(3)]
    unverified = PackedSplit(split.packed_dir, "val", verify=False)
    size = shards[0].stat().st_size
    shards[0].write_bytes(shards[0].read_bytes()[: size // 2])
    message = rf"val-00000.h5: damaged, or another .*: {size // 2} bytes, expected {size}; delete"
    with pytest.raises(ShardError, match=message):
        split.image(0)
    with pytest.raises(ShardError, match=r"val-00000.h5: cannot be read as a shard .*delete"):
        unverified.image(0)
    shutil.copy(shards[1], shards[0])  # as long as the right one
    with pytest.raises(
        ShardError, match=r"val-00000.h5: .* another shard .* bytes outside the pix"
    ):
        split.image(0)
    with pytest.raises(ShardError, match=r"not the shard that the index means: shard: found 1, ex"):
        unverified.image(0)
    shards[1].unlink()
    for reader in (split, unverified):
        with pytest.raises(ShardError, match=r"val-00001.h5: not there, though the index names it"):
            reader.image(2)


def test_the_index_says_what_is_wrong(split: PackedSplit, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"has no split 'train'; it has: val"):
        PackedSplit(split.packed_dir, "train")
    path = split.packed_dir / "index.json"
    text = path.read_text()
    for old, new, message in (
        ('"format_version": 2', '"format_version": 1', "format_version 1, expected 2; pack the"),
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


def open_shards(packed: Path) -> list[str]:
    """The shards that this process holds open, one name per file descriptor."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(descriptor.readlink())
        except FileNotFoundError:  # that of the listing itself
            continue
    return sorted(link.name for link in links if link.parent == packed)


def test_few_shards_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.shards.MOST_OPEN", 3)
    samples = make_samples(1, 9, 8, [(5, 6)] * 20)
    split = write_split(tmp_path / "packed", samples, 2, [str(i) for i in range(20)])
    assert len(split.entries) == 10
    order = random.Random(0).choices(range(20), k=50)
    most = 0
    for i in order:
        assert np.array_equal(split.image(i), samples[i].image)
        assert np.array_equal(split.labels_full(i), samples[i].labels_full)
        now = open_shards(split.packed_dir)
        assert f"val-{i // 2:05d}.h5" in now and len(set(now)) == len(now)
        most = max(most, len(now))
    assert most == 3
    recent = list(dict.fromkeys(i // 2 for i in reversed(order)))[:3]  # those used last stay
    assert open_shards(split.packed_dir) == [f"val-{number:05d}.h5" for number in sorted(recent)]
    del split
    assert not open_shards(tmp_path / "packed")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_used_reader_works_in_child_processes(split: PackedSplit, method: Any) -> None:
    expected = read_sum(split)
    assert len(pickle.dumps(split)) < 10_000  # no pixels travel with it
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(read_sum, [split] * 3) == [expected] * 3


def test_a_forked_child_reads_from_the_maps_it_inherits(split: PackedSplit) -> None:
    expected = read_sum(split)
    parent_end, child_end = multiprocessing.Pipe()

    def child() -> None:  # unlike a pool's, its reader was not pickled
        child_end.send((read_sum(split), int(split.labels(0).sum())))  # one open, one new shard

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert parent_end.recv() == (expected, int(split.labels(0).sum()))
    process.join()
    assert process.exitcode == 0


def test_a_failed_write_leaves_nothing(tmp_path: Path, split: PackedSplit) -> None:
    [sample] = make_samples(0, HEIGHT, WIDTH, [FULL])

    def failing() -> Any:
        yield sample
        raise OSError("disk gone")

    recipe, path = open_shard(split.packed_dir / "val-00000.h5").recipe, tmp_path / "val-00000.h5"
    with pytest.raises(OSError, match="disk gone"):
        write_shard(path, recipe, ["a", "b"], [FULL] * 2, failing())
    # A sample too few is found when the file is read back, before it gets its name.
    with pytest.raises(ShardError, match=r"'b': rows 0..63 of images do not match"):
        write_shard(path, recipe, ["a", "b"], [FULL] * 2, iter([sample]))
    assert list(tmp_path.iterdir()) == [split.packed_dir]
