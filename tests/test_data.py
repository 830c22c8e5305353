import multiprocessing
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from tiny_jobs import same_state

from data_prep.config import load_class_set
from data_prep.labels import lookup_table
from data_prep.listing import city_of
from data_prep.shards import PackedSplit
from tigan import augment, distributed
from tigan.data import (
    StepBatches,
    Stream,
    class_table,
    draw_labelled,
    label_count,
    load_from,
    train_and_selection,
)


def stream(packed: Path, **changes) -> Stream:
    split = PackedSplit(packed, "train")
    table = np.arange(256, dtype=np.uint8)
    settings = {
        "split": split,
        "indices": np.arange(len(split)),
        "batch_size": 4,
        "seed": (0, 1),
        "crop": (16, 20),
        "flip": True,
        "zoom": (0.8, 1.5),
        "jitter": 0.2,
        "table": table,
    }
    return Stream(**(settings | changes))


def test_every_epoch_shows_every_image_once_in_a_new_order(packed_synthia: Path) -> None:
    endless = stream(packed_synthia)
    count = len(endless.indices)
    epochs = [[endless.index_at(e * count + i) for i in range(count)] for e in range(4)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_order_does_not_depend_on_the_number_of_ranks(packed_synthia: Path) -> None:
    endless = stream(packed_synthia)
    for step in (0, 3):
        whole = endless.batch(step, 0, 1)
        halves = [endless.batch(step, rank, 2) for rank in (0, 1)]
        assert whole.keys == halves[0].keys + halves[1].keys
        assert torch.equal(whole.images, torch.cat([h.images for h in halves]))


def test_batches_do_not_depend_on_where_the_loader_starts(packed_synthia: Path) -> None:
    batches = StepBatches({"synthetic": stream(packed_synthia)})
    straight = load_from(batches, 0, num_workers=0)
    for _ in range(3):
        next(straight)
    resumed = load_from(batches, 3, num_workers=0)
    for _ in range(2):
        a, b = next(straight)["synthetic"], next(resumed)["synthetic"]
        assert same_state([a.images, a.labels, a.keys], [b.images, b.labels, b.keys])


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_stop_on_two_ranks_goes_on_with_the_same_global_batches_on_others(
    packed_synthia: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    endless = stream(packed_synthia, batch_size=6)

    def global_batches(world_size: int, first: int, count: int) -> list[list[object]]:
        """Loaded rank by rank, as that many ranks would, and put together."""
        loaders = []
        for rank in range(world_size):
            group = distributed.Group(rank, world_size, torch.device("cpu"))
            monkeypatch.setattr(distributed, "_group", group)
            loaders.append(load_from(StepBatches({"synthetic": endless}), first, num_workers=0))
        steps = [[next(loader)["synthetic"] for loader in loaders] for _ in range(count)]
        return [
            [
                torch.cat([part.images for part in parts]),
                torch.cat([part.labels for part in parts]),
                [key for part in parts for key in part.keys],
            ]
            for parts in steps
        ]

    straight = global_batches(2, 0, 5)
    stopped = global_batches(2, 0, 2)
    assert same_state(stopped + global_batches(ranks, 2, 3), straight)


def test_a_class_set_of_other_labels_is_refused(packed_synthia: Path) -> None:
    split = PackedSplit(packed_synthia, "train")
    classes = load_class_set("synthia16")
    table = class_table(split, classes)
    assert (table == lookup_table(classes, "synthia")).all()
    pixels = {"200": 95, "1": 5}
    split.statistics = split.statistics.model_copy(update={"label_pixels": pixels})
    message = r"train': of class set 'synthia16' it holds sky only, 95.0 % of its pixels"
    with pytest.raises(ValueError, match=message):
        class_table(split, classes)


def test_workers_change_nothing_and_leave_torchs_generator_alone(packed_synthia: Path) -> None:
    batches = StepBatches({"synthetic": stream(packed_synthia)})
    alone = next(load_from(batches, 2, num_workers=0))["synthetic"]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loader = load_from(batches, 2, num_workers=1)
    assert torch.equal(next(loader)["synthetic"].images, alone.images)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_worker_inherits_a_pool_of_opencv_threads(packed_synthia: Path) -> None:
    # Such a worker hangs, though not every time: so this asks whether there was a pool to inherit.
    cv2.setNumThreads(2)
    loader = load_from(StepBatches({"synthetic": stream(packed_synthia)}), 0, num_workers=1)
    assert cv2.getNumThreads() == 1
    assert len(next(loader)["synthetic"].keys) == 4


def test_workers_are_forked_whatever_pythons_default_is(packed_synthia: Path) -> None:
    # Python 3.14's starts them through a server, which the signals to a whole step end.
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        loader = load_from(StepBatches({"synthetic": stream(packed_synthia)}), 0, num_workers=1)
        assert len(next(loader)["synthetic"].keys) == 4
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert [type(worker) for worker in loader._workers] == [ForkProcess]


def test_labels_stay_with_their_pixels(packed_synthia: Path) -> None:
    # The tiny images are painted by class: after the same crop and flip the mean colour of a
    # class must be that of the whole image.
    split = PackedSplit(packed_synthia, "train")
    plain = stream(packed_synthia, zoom=(1.0, 1.0), jitter=0.0)
    for position in range(10):
        image, labels, key = plain.sample(position)
        index = split.keys.index(key)
        full, ids = split.image(index), split.labels(index)
        for label in np.unique(labels):
            mean = full[ids == label].mean(0)
            assert np.abs(image[labels == label].mean(0) - mean).max() < 25


def test_ranks_that_do_not_divide_the_batch_are_refused(
    packed_synthia: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_group", distributed.Group(0, 3, torch.device("cpu")))
    with pytest.raises(ValueError, match=r"'synthetic'.*4 cannot be shared evenly by 3 ranks"):
        StepBatches({"synthetic": stream(packed_synthia)})


def test_selection_is_the_end_of_every_city_and_never_trained_on(packed_cityscapes: Path) -> None:
    split = PackedSplit(packed_cityscapes, "train")
    train, selection = train_and_selection(split, 0.4)
    assert not set(train) & set(selection)
    assert len(train) + len(selection) == len(split)
    for name in ("aachen", "bochum"):
        kept = [split.keys[i] for i in train if city_of(split.keys[i]) == name]
        held = [split.keys[i] for i in selection if city_of(split.keys[i]) == name]
        assert held and max(kept) < min(held)


def test_cities_whose_names_begin_alike_each_give_their_own_end() -> None:
    keys = [f"{name}_{i:06d}_000019" for name in ("new_delhi", "new_york") for i in range(4)]
    _, selection = train_and_selection(cast(PackedSplit, SimpleNamespace(keys=keys)), 0.25)
    assert [keys[i] for i in selection] == ["new_delhi_000003_000019", "new_york_000003_000019"]


def test_draws_are_nested_and_differ() -> None:
    train = np.arange(100, 400)
    few, many = draw_labelled(train, 14, 0), draw_labelled(train, 29, 0)
    assert few.tolist() == many[:14].tolist()
    assert len(set(many.tolist())) == 29 and set(many) <= set(train)
    assert few.tolist() != draw_labelled(train, 14, 1).tolist()


def test_all_labels_are_what_the_selection_split_leaves() -> None:
    train = np.arange(2678)
    assert label_count(train, "all") == 2678 and label_count(train, 14) == 14
    with pytest.raises(ValueError, match=r"finetune\.labels: 2679 asked for.*only 2678"):
        label_count(train, 2679)


def test_zoom_is_limited_to_what_fits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows, columns = augment.crop_window(rng, (20, 30), (16, 24), (0.5, 2.0))
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert 8 <= height <= 20 and 12 <= width <= 30
        assert rows.stop <= 20 and columns.stop <= 30


def test_jitter_of_a_grey_image_stays_grey() -> None:
    grey = np.full((4, 4, 3), 120, np.uint8)
    result = augment.colour_jitter(np.random.default_rng(1), grey, 0.3)
    assert (result == result[..., :1]).all() and not (result == 120).all()
