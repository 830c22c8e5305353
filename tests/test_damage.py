"""Every flipped bit of a packed set is found: by the check, by the reader, and by a restart."""

import multiprocessing
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import h5py
import pytest
from tiny_data import contents, flip, make_samples, write_split, write_synthia

from data_prep.config import PackConfig
from data_prep.index import ShardError, read_index, shard_recipe
from data_prep.mpi import Alone
from data_prep.pack import pack
from data_prep.shards import PackedSplit
from data_prep.survey import PackJob
from data_prep.validate import check_shard

HEIGHT, WIDTH, SIZES = 8, 9, [(4, 5), (6, 7)]
SHARD = "val-00000.h5"


@pytest.fixture
def split(tmp_path: Path) -> PackedSplit:
    """One shard of two samples, 'left' and 'right'."""
    samples = make_samples(3, HEIGHT, WIDTH, SIZES)
    return write_split(tmp_path / "packed", samples, 2, ["left", "right"])


def owners(split: PackedSplit) -> dict[int, str]:
    """Offset of every pixel's byte in the shard -> key of the sample it belongs to."""
    sizes = {
        "images": [HEIGHT * WIDTH * 3] * 2,
        "labels": [HEIGHT * WIDTH] * 2,
        "labels_full": [height * width for height, width in SIZES],
    }
    found = {}
    for name, (offset, total) in split.entries[0].pixels.items():
        keys = [key for key, size in zip(split.keys, sizes[name], strict=True) for _ in range(size)]
        assert len(keys) == total
        found.update({offset + i: key for i, key in enumerate(keys)})
    return found


def read_all(split: PackedSplit) -> None:
    for i in range(len(split)):
        split.image(i), split.labels(i), split.labels_full(i), split.original_size(i)


def check_flips(split: PackedSplit, offsets: Iterable[int]) -> None:
    """Flip a bit at each offset: check and reader must both refuse, naming shard and sample."""
    path, [entry] = split.packed_dir / SHARD, split.entries
    recipe, owner, rng = shard_recipe(split.recipe, "val", 0), owners(split), random.Random(0)
    for offset in offsets:
        bit = rng.randrange(8)
        flip(path, offset, bit)
        with pytest.raises(ShardError) as by_check:
            check_shard(path, entry, recipe)
        with pytest.raises(ShardError) as by_reader:
            read_all(PackedSplit(split.packed_dir, "val"))
        for message in map(str, (by_check.value, by_reader.value)):
            assert message.startswith(f"{path}: ") and "delete the file and run" in message
            found = [key for key in split.keys if f"sample {key!r}" in message]
            assert found == ([owner[offset]] if offset in owner else []), (offset, message)
        flip(path, offset, bit)
    check_shard(path, entry, recipe)
    read_all(PackedSplit(split.packed_dir, "val"))


def test_flipped_bits_of_a_shard_are_found(split: PackedSplit) -> None:
    size, rng = split.entries[0].bytes, random.Random(1)
    edges = [at for offset, n in split.entries[0].pixels.values() for at in (offset, offset + n)]
    near_edges = [at + d for at in edges for d in (-1, 0) if at + d < size]
    pixels = rng.sample(sorted(owners(split)), 25)
    check_flips(split, [0, size - 1, *near_edges, *pixels, *rng.sample(range(size), 50)])


@pytest.mark.slow
def test_a_flipped_bit_of_any_byte_of_a_shard_is_found(split: PackedSplit) -> None:
    check_flips(split, range(split.entries[0].bytes))


def test_a_flipped_bit_of_any_byte_of_the_index_is_found(split: PackedSplit) -> None:
    path, rng = split.packed_dir / "index.json", random.Random(2)
    good, unseen = read_index(split.packed_dir), 0
    for offset in range(path.stat().st_size):
        bit = rng.randrange(8)
        flip(path, offset, bit)
        try:
            found = read_index(split.packed_dir)
        except ShardError as error:
            assert str(error).startswith(f"{path}: ")
        else:  # the last of a float's 17 digits may be another, and the float the same
            assert found == good
            unseen += 1
        flip(path, offset, bit)
    assert unseen <= 6 and read_index(split.packed_dir) == good


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackJob:
    """A pack of one shard that was killed before it wrote the index; its result is in `good/`."""
    monkeypatch.setattr("data_prep.pack.world", Alone)  # forked children cannot use MPI
    root = write_synthia(tmp_path / "source", 2, (10, 12))
    config = PackConfig(height=8, width=9, images_per_shard=2)
    job = PackJob("synthia", root, tmp_path / "packed", config, subset=True, tell=str)
    pack(job)
    shutil.copytree(job.out_dir, tmp_path / "good")
    (job.out_dir / "index.json").unlink()
    return job


def check_going_on(job: PackJob, offsets: Iterable[int]) -> None:
    """Damage the shard of an unfinished pack: going on finds it, or makes the very same bytes."""
    path, index = job.out_dir / "train-00000.h5", job.out_dir / "index.json"
    good = contents(job.out_dir.parent / "good")
    context = multiprocessing.get_context("fork")
    at = context.Value("l", -1)

    def child() -> None:
        for at.value in offsets:
            path.write_bytes(good[path.name])
            flip(path, at.value)
            try:
                pack(job)
            except ShardError as error:
                assert str(error).startswith(f"{path}: ")
                assert not index.exists()
            else:
                assert contents(job.out_dir) == good
                index.unlink()

    # In a child: damaged metadata may crash HDF5, or make it loop for ever.
    process = context.Process(target=child)
    process.start()
    process.join(120)
    exit_code = process.exitcode
    process.kill()
    assert exit_code == 0, f"byte {at.value}: " + ("it hangs" if exit_code is None else "see above")


@pytest.mark.parametrize("name", ["keys", "sizes", "image_histograms", "label_histograms"])
def test_damage_in_small_data_of_an_unfinished_pack_is_found(
    unfinished: PackJob, name: str
) -> None:
    with h5py.File(unfinished.out_dir / "train-00000.h5", "r") as file:
        offset = file[name].id.get_offset()
    check_going_on(unfinished, [offset])


@pytest.mark.slow
def test_any_damage_in_an_unfinished_pack_is_found(unfinished: PackJob) -> None:
    size = (unfinished.out_dir / "train-00000.h5").stat().st_size
    check_going_on(unfinished, sorted(random.Random(3).sample(range(size), 2000)))
