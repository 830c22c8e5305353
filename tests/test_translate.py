"""python -m tigan.translate: the pixels that f is scored on, sizes, layout, restarts."""

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import ORIGINAL, PACKED, write_png
from translate_calls import call, made, read, write_photos

from data_prep.config import load_class_set
from data_prep.labels import colour_table, regular_ids
from data_prep.samples import resize_image
from data_prep.shards import PackedSplit
from tigan import predict, translate
from tigan.pictures import resized

pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def test_the_pixels_are_those_that_were_scored(
    tmp_path: Path, run_dir: Path, cityscapes_root: Path
) -> None:
    images = cityscapes_root / "leftImg8bit" / "val"
    assert call(run_dir, images, tmp_path, "--predict") == 0
    classes = load_class_set("cityscapes19")
    split = PackedSplit(run_dir / "pack_cityscapes", "val")
    _, generator = predict.load_generator(run_dir / "finetune")
    f = predict.load_segmenter(run_dir / "segmenter", classes)
    for index, key in enumerate(split.keys):
        stem = tmp_path / "frankfurt" / f"{key}_leftImg8bit"
        with torch.no_grad():
            image = predict.image_tensor(split.image(index))
            fed = predict.translate(generator, image, uint8=True)
            seen = predict.classes_at(f.logits, fed, ORIGINAL).numpy()
        pixels = np.rint(255 * fed[0].permute(1, 2, 0).numpy())
        assert (read(stem.with_suffix(".png")) == pixels).all()
        assert (
            read(stem.with_name(f"{stem.name}_labelIds.png")) == regular_ids(classes)[seen]
        ).all()
        assert (read(stem.with_name(f"{stem.name}_color.png")) == colour_table(classes)[seen]).all()


def test_layout_is_kept_and_a_cut_call_goes_on(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(run_dir, photos, out) == 0
    before = made(out)
    assert before.keys() == {"a.png", "b/c.png", "b/d.e.png", "translate.json"}
    assert read(out / "b" / "c.png").shape == (*PACKED, 3)
    assert json.loads(before["translate.json"])["translator"] == "finetune"
    printed = capfd.readouterr().out
    assert "3 images with finetune" in printed and "32 x 24 pixels" in printed
    assert "1 images have another shape" not in printed  # 50 x 37: 1.3 % from 4:3
    (out / "b" / "c.png").unlink()
    (out / "a.png").write_bytes(b"kept as it is")
    assert call(run_dir, photos, out) == 0
    assert made(out) == before | {"a.png": b"kept as it is"}
    assert "1 images translated" in (printed := capfd.readouterr().out)
    assert "2 were there already" in printed
    assert call(run_dir, photos, out, "--predict") == 0  # adds to the translations
    assert made(out).keys() >= {"a_labelIds.png", "a_color.png", "b/d.e_labelIds.png"}
    assert (out / "a.png").read_bytes() == b"kept as it is"


def test_images_of_another_shape_are_counted(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_png(photos / "wide.png", np.zeros((20, 80, 3), np.uint8))
    assert call(run_dir, photos, tmp_path / "out") == 0
    assert "1 images have another shape" in capfd.readouterr().out


def test_own_sizes_are_padded_by_reflection(tmp_path: Path, run_dir: Path, photos: Path) -> None:
    out = tmp_path / "out"
    write_png(photos / "b" / "c.png", read(photos / "a.png")[:33, :45])
    (photos / "b" / "c.JPG").unlink()
    assert call(run_dir, photos, out, "--no-resize", "--predict") == 0
    _, generator = predict.load_generator(run_dir / "finetune")
    padded = np.pad(read(photos / "b" / "c.png"), ((0, 3), (0, 3), (0, 0)), mode="reflect")
    for name, image in (("a", read(photos / "a.png")), ("b/c", padded)):
        with torch.no_grad():
            fed = predict.translate(generator, predict.image_tensor(image), uint8=True)
        expected = np.rint(255 * fed[0].permute(1, 2, 0).numpy())
        found = read(out / f"{name}.png")
        assert (found == expected[: found.shape[0], : found.shape[1]]).all()
        assert found.shape == read(photos / f"{name}.png").shape
        assert read(out / f"{name}_labelIds.png").shape == found.shape[:2]


def test_a_changed_photograph_is_translated_anew(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(run_dir, photos, out, "--predict") == 0
    before = made(out)
    write_png(photos / "a.png", np.full((*ORIGINAL, 3), 200, np.uint8))
    for path in out.glob("a*.png"):
        os.utime(path, (1e9, 1e9))
    capfd.readouterr()
    assert call(run_dir, photos, out, "--predict") == 0
    printed = capfd.readouterr().out
    assert "1 images translated" in printed and "2 were there already" in printed
    assert call(run_dir, photos, tmp_path / "fresh", "--predict") == 0
    assert made(out) == made(tmp_path / "fresh") != before
    assert call(run_dir, photos, out, "--predict") == 0
    assert "3 were there already" in capfd.readouterr().out


def test_a_line_of_progress_every_five_seconds(
    tmp_path: Path, run_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(time, "monotonic", itertools.count(step=2.0).__next__)
    translate.translate_folder(run_dir, photos, tmp_path / "out", tell=lines.append)
    assert [line for line in lines if "images/s" in line] == ["3 of 3 images, 0.38 images/s"]


@pytest.mark.parametrize("size", [(24, 32), (17, 50), (72, 96), (40, 40), ORIGINAL])
def test_images_are_resized_as_packing_does(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*ORIGINAL, 3), dtype=np.uint8)
    assert (resized(image, size) == resize_image(image, *size)).all()
