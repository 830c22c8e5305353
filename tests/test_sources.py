"""Reading both layouts, and every way in which a data set on disk can be wrong."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_data import ORIGINAL, SYNTHIA_IDS, flip, label_blocks, paint, write_png

from data_prep.listing import SourceError, city_of, fingerprint, missing_images
from data_prep.sources import check_headers, open_source, read_header, read_image, read_labels


def test_synthia_values(synthia_root: Path) -> None:
    source = open_source("synthia", synthia_root)
    items = source.splits["train"]
    assert list(source.splits) == ["train"]
    assert [item.key for item in items] == [f"{i:07d}" for i in range(10)]
    rng = np.random.default_rng([1, 4])
    labels = label_blocks(rng, SYNTHIA_IDS, ORIGINAL)
    rng.integers(0, 60000, labels.shape)  # the instance ids, drawn in between
    read = read_labels("synthia", items[4].label_path)
    assert read.dtype == np.uint8 and (read == labels).all()
    assert (read_image(items[4].image_path) == paint(rng, labels)).all()
    assert check_headers("synthia", items) == ([ORIGINAL] * 10, [])


def test_synthia_with_and_without_its_top_folder(synthia_root: Path) -> None:
    inner = synthia_root / "RAND_CITYSCAPES"
    assert open_source("synthia", inner) == open_source("synthia", synthia_root)
    assert fingerprint(open_source("synthia", inner)) == fingerprint(
        open_source("synthia", synthia_root)
    )


def test_synthia_split_is_fixed_sorted_and_nested(synthia_root: Path) -> None:
    keys = {}
    for count in (2, 3):
        splits = open_source("synthia", synthia_root, val_images=count).splits
        keys[count] = [item.key for item in splits["val"]]
        together = keys[count] + [item.key for item in splits["train"]]
        assert sorted(together) == [f"{i:07d}" for i in range(10)]
        assert keys[count] == sorted(keys[count]) and len(keys[count]) == count
    assert set(keys[2]) < set(keys[3])
    # Golden: packed sets and published figures depend on this draw.
    assert keys[3] == ["0000000", "0000002", "0000006"]
    with pytest.raises(SourceError, match=r"val_images: 10 of 10 images .* expected fewer"):
        open_source("synthia", synthia_root, val_images=10)


def test_cityscapes_values(cityscapes_root: Path) -> None:
    splits = open_source("cityscapes", cityscapes_root).splits
    assert {split: len(items) for split, items in splits.items()} == {"train": 7, "val": 4}
    keys = [item.key for item in splits["train"]]
    assert keys == sorted(keys) and keys[0] == "aachen_000000_000019"
    assert [city_of(key) for key in keys] == ["aachen"] * 4 + ["bochum"] * 3
    labels = read_labels("cityscapes", splits["val"][0].label_path)
    assert labels.shape == ORIGINAL and 23 in labels
    with pytest.raises(SourceError, match="a val split of its own"):
        open_source("cityscapes", cityscapes_root, val_images=2)


def test_cityscapes_test_split_and_other_files_are_left_out(cityscapes_copy: Path) -> None:
    before = (
        fingerprint(open_source("cityscapes", cityscapes_copy)),
        open_source("cityscapes", cityscapes_copy),
    )
    write_png(
        cityscapes_copy / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", np.eye(8)
    )
    write_png(
        cityscapes_copy / "gtFine/train/aachen/aachen_000000_000019_gtFine_color.png", np.eye(8)
    )
    (cityscapes_copy / "leftImg8bit/train/aachen/._aachen_000000_000019_leftImg8bit.png").touch()
    assert (
        fingerprint(open_source("cityscapes", cityscapes_copy)),
        open_source("cityscapes", cityscapes_copy),
    ) == before


@pytest.mark.parametrize("kind", ["synthia", "cityscapes"])
def test_missing_empty_and_wrong_roots(
    kind: str, tmp_path: Path, synthia_root: Path, cityscapes_root: Path
) -> None:
    with pytest.raises(SourceError, match=rf"nowhere: no such directory.*{kind} layout"):
        open_source(kind, tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"expected .*it is empty"):
        open_source(kind, tmp_path)
    other = cityscapes_root if kind == "synthia" else synthia_root
    with pytest.raises(SourceError, match=r"not in the \w+ layout: expected .*it holds \w+"):
        open_source(kind, other)


def test_folders_without_images(tmp_path: Path) -> None:
    for name in ("RGB", "GT/LABELS", "leftImg8bit/train", "leftImg8bit/val"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "RGB" / "0000000.jpg").touch()
    with pytest.raises(SourceError, match=r"RGB: no .png images in it: it holds 0000000.jpg"):
        open_source("synthia", tmp_path)
    (tmp_path / "gtFine/train").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"leftImg8bit/train: no CITY/.*it is empty"):
        open_source("cityscapes", tmp_path)


def test_unofficial_labels_are_refused(synthia_copy: Path) -> None:
    base = synthia_copy / "RAND_CITYSCAPES"
    (base / "GT" / "LABELS").rename(base / "GT" / "parsed_LABELS")
    with pytest.raises(SourceError, match=r"parsed_LABELS: an unofficial .* 16-bit GT/LABELS"):
        open_source("synthia", synthia_copy)


def test_images_and_labels_without_a_partner(synthia_copy: Path, cityscapes_copy: Path) -> None:
    base = synthia_copy / "RAND_CITYSCAPES"
    for i in range(4):
        (base / "GT" / "LABELS" / f"{i:07d}.png").unlink()
    (base / "RGB" / "0000009.png").unlink()
    message = (
        r"4 images without a label \(0000000, 0000001, 0000002, ...\) and 1 labels without an "
        r"image \(0000009\), of 9 images and 6 labels"
    )
    with pytest.raises(SourceError, match=message):
        open_source("synthia", synthia_copy)
    (cityscapes_copy / "leftImg8bit/val/frankfurt/frankfurt_000001_000019_leftImg8bit.png").unlink()
    with pytest.raises(SourceError, match=r"1 labels without an image \(frankfurt_000001_000019\)"):
        open_source("cityscapes", cityscapes_copy)


def test_cityscapes_file_in_the_wrong_city(cityscapes_copy: Path) -> None:
    folder = cityscapes_copy / "leftImg8bit/train"
    name = "aachen_000000_000019_leftImg8bit.png"
    (folder / "aachen" / name).rename(folder / "bochum" / name)
    with pytest.raises(SourceError, match=r"expected the name CITY_.* its folder, 'bochum'"):
        open_source("cityscapes", cityscapes_copy)


def test_all_headers_are_checked(synthia_copy: Path) -> None:
    items = open_source("synthia", synthia_copy).splits["train"]
    for item in items[:2]:
        write_png(item.image_path, np.zeros((30, 40, 3), np.uint8))
    write_png(items[5].label_path, np.zeros(ORIGINAL, np.uint8))
    items[7].image_path.write_bytes(items[7].image_path.read_bytes()[:-1])
    items[8].label_path.unlink()
    sizes, problems = check_headers("synthia", items)
    assert sizes == [ORIGINAL] * 5
    for problem, parts in zip(
        problems,
        [
            (f"{items[0].image_path} has 40 x 30 pixels, but {items[0].label_path} 48 x 36",),
            (f"{items[1].image_path} has 40 x 30 pixels",),
            (f"{items[5].label_path}: expected a PNG of 16 bits", "found 8 bits and colour type 0"),
            (f"{items[7].image_path}: damaged PNG file", "fetch it again"),
            ("No such file or directory", str(items[8].label_path)),
        ],
        strict=True,
    ):
        assert all(part in problem for part in parts)


def test_published_numbers_of_images(synthia_root: Path, cityscapes_root: Path) -> None:
    for kind, root in (("synthia", synthia_root), ("cityscapes", cityscapes_root)):
        source = open_source(kind, root)
        assert "a download or unpacking may have been cut short" in missing_images(source)
        published = {"synthia": (9400, 0), "cityscapes": (2975, 500)}[kind]
        item = source.splits["train"][0]
        for counts, complete in ((published, True), ((published[0] - 1, published[1]), False)):
            splits = dict(zip(("train", "val"), ([item] * count for count in counts), strict=True))
            assert (missing_images(replace(source, splits=splits)) == "") is complete
    # How Synthia is split is ours: 8,900 and 500 are the 9,400.
    splits = {"train": [item] * 8900, "val": [item] * 500}
    assert not missing_images(replace(open_source("synthia", synthia_root), splits=splits))


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.ones((8, 8, 3), np.uint8), "8 bits and colour type 2"),
        (np.ones((8, 8), np.uint16), "16 bits and colour type 0"),
        (np.ones((8, 8, 4), np.uint16), "16 bits and colour type 6"),
    ],
)
def test_synthia_labels_of_another_format(tmp_path: Path, pixels: np.ndarray, found: str) -> None:
    path = tmp_path / "0000000.png"
    assert cv2.imwrite(str(path), pixels)
    with pytest.raises(SourceError, match=rf"expected a PNG of 16 bits .* found {found}"):
        read_labels("synthia", path)


def test_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    write_png(path, np.ones((8, 8, 3), np.uint8))
    with pytest.raises(SourceError, match=r"x.png: expected a PNG of 8 bits and colour type 0"):
        read_labels("cityscapes", path)
    write_png(path, np.ones((8, 8), np.uint8))
    with pytest.raises(SourceError, match=r"colour type 2 or 6, found 8 bits and colour type 0"):
        read_image(path)
    for content, found in ((b"", "an empty file"), (b"\xff\xd8\xff\xe0" * 9, "starts with")):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=rf"x.png: not a PNG file: found .*{found}"):
            read_image(path)


def test_any_damage_to_a_file_is_found(synthia_copy: Path) -> None:
    item, rng = open_source("synthia", synthia_copy).splits["train"][0], random.Random(0)
    for path, read in (
        (item.image_path, read_image),
        (item.label_path, lambda path: read_labels("synthia", path)),
    ):
        good = path.read_bytes()
        for length in (0, 7, 25, 26, 60, len(good) // 2, len(good) - 40, len(good) - 1):
            path.write_bytes(good[:length])
            with pytest.raises(SourceError, match=rf"{path.name}: (damaged PNG|not a PNG)"):
                read(path)
            with pytest.raises(SourceError, match=r"cut short|not a PNG"):
                read_header(path)  # as before anything is packed
        path.write_bytes(good)
        for offset in {*range(60), *rng.choices(range(len(good)), k=60), len(good) - 1}:
            flip(path, offset, offset % 8)
            with pytest.raises(SourceError, match=rf"^{path}: "):
                read(path)
            flip(path, offset, offset % 8)
        assert read(path).shape[:2] == ORIGINAL


def test_unknown_label_ids(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    pixels = np.zeros((8, 8, 3), np.uint16)
    pixels[0, :, 0] = 300  # more than 8 bits: instance ids read as classes, for example
    pixels[1, :, 0] = 23
    write_png(path, pixels)
    with pytest.raises(
        SourceError, match=r"labels.png: unknown label ids 23, 300 \(16 of 64 pixels\)"
    ):
        read_labels("synthia", path)
    write_png(path, np.full((8, 8), 34, np.uint8))
    with pytest.raises(SourceError, match=r"unknown label ids 34 \(64 of 64 .*cityscapes"):
        read_labels("cityscapes", path)


def test_fingerprint_follows_names_and_sizes_not_the_place(
    synthia_copy: Path, synthia_root: Path
) -> None:
    original = fingerprint(open_source("synthia", synthia_root))
    assert fingerprint(open_source("synthia", synthia_copy)) == original and len(original) == 32
    label = synthia_copy / "RAND_CITYSCAPES/GT/LABELS/0000003.png"
    label.write_bytes(label.read_bytes() + b"\0")
    assert fingerprint(open_source("synthia", synthia_copy)) != original
    shutil.copy(synthia_root / "RAND_CITYSCAPES/GT/LABELS/0000003.png", label)
    for folder in ("RGB", "GT/LABELS"):
        old = synthia_copy / "RAND_CITYSCAPES" / folder / "0000003.png"
        old.rename(old.with_name("0000033.png"))
    assert fingerprint(open_source("synthia", synthia_copy)) != original
