"""The statistics of a packed split are exact, whatever the shards."""

from pathlib import Path

import numpy as np
import pytest
from tiny_data import PACKED

from data_prep.config import PackConfig
from data_prep.histograms import Totals, histogram, image_histogram
from data_prep.pack import pack
from data_prep.shards import PackedSplit
from data_prep.survey import PackJob

pytestmark = pytest.mark.usefixtures("_no_launcher")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_is_counted(dtype: type) -> None:
    values = np.iinfo(dtype).max + 1
    channel = np.random.default_rng(0).integers(0, values, (300, 401)).astype(dtype)
    channel[0, 0], channel[0, 1] = 0, values - 1
    for part in (channel, channel[::3, 5:], channel.T, channel[:1]):
        counted = histogram(part, values=values)
        assert counted.dtype == np.int64
        assert (counted == np.bincount(part.reshape(-1), minlength=values)).all()


def test_every_channel_is_counted() -> None:
    image = np.random.default_rng(1).integers(0, 256, (90, 31, 3), dtype=np.uint8)
    expected = [np.bincount(image[..., channel].reshape(-1), minlength=256) for channel in range(3)]
    assert (image_histogram(image) == expected).all()
    assert (image_histogram(image[5:, ::2]).sum(1) == 85 * 16).all()


def test_counts_are_exact_beyond_those_of_float32() -> None:
    channel = np.full((4099, 4099), 7, np.uint8)  # 2^24 and a little more, all of one value
    channel[-1, -1] = 255
    counted = histogram(channel)
    assert counted[7] == channel.size - 1 and counted[255] == 1 and counted.sum() == channel.size


@pytest.mark.parametrize("split", ["train", "val"])
def test_statistics_are_those_of_the_packed_pixels(packed_synthia: Path, split: str) -> None:
    packed = PackedSplit(packed_synthia, split)
    images = np.stack([packed.image(i) for i in range(len(packed))]) / 255.0
    labels = np.stack([packed.labels(i) for i in range(len(packed))])
    assert packed.statistics.channel_mean == pytest.approx(images.mean((0, 1, 2)), abs=1e-12)
    assert packed.statistics.channel_std == pytest.approx(images.std((0, 1, 2)), abs=1e-12)
    ids, counts = np.unique(labels, return_counts=True)
    assert packed.statistics.label_pixels == dict(
        zip(map(str, ids.tolist()), counts.tolist(), strict=True)
    )


@pytest.mark.parametrize("images_per_shard", [1, 4, 256])
def test_statistics_do_not_depend_on_the_shards(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path, images_per_shard: int
) -> None:
    config = PackConfig(
        height=PACKED[0], width=PACKED[1], images_per_shard=images_per_shard, val_images=3
    )
    pack(PackJob("synthia", synthia_root, tmp_path / "packed", config, subset=True))
    for split in ("train", "val"):
        here, there = (PackedSplit(p, split) for p in (tmp_path / "packed", packed_synthia))
        assert here.statistics == there.statistics


def test_images_of_one_colour_have_no_deviation() -> None:
    totals = Totals()
    for _ in range(3):
        image = np.empty((70, 30, 3), np.uint8)
        image[:] = (0, 77, 255)
        totals.add(image_histogram(image), histogram(image[..., 1]))
    statistics = totals.statistics()
    assert statistics.channel_mean == [0.0, 77 / 255, 1.0]
    assert statistics.channel_std == [0.0, 0.0, 0.0]
    assert statistics.label_pixels == {"77": 3 * 70 * 30}
