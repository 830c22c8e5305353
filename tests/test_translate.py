"""python -m tigan.translate: the pixels that f is scored on, restarts, bad images, bad calls."""

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_data import ORIGINAL, PACKED, write_png
from tiny_run import CONTROL, tiny_run

from data_prep.config import load_class_set
from data_prep.labels import colour_table, regular_ids
from data_prep.samples import resize_image
from data_prep.shards import PackedSplit
from tigan import predict, translate
from tigan.pictures import resized


@pytest.fixture(scope="module")
def run_dir(
    tmp_path_factory: pytest.TempPathFactory, packed_synthia: Path, packed_cityscapes: Path
) -> Path:
    return tiny_run(tmp_path_factory.getbasetemp(), packed_synthia, packed_cityscapes)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The command's session makes torch deterministic for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images in two folders, one of them an odd size, and things that are no images."""
    folder, rng = tmp_path / "photos", np.random.default_rng(3)
    for name, size in (("a.png", ORIGINAL), ("b/c.JPG", (37, 50)), ("b/d.e.jpeg", ORIGINAL)):
        write_png(folder / name, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (folder / "b" / "notes.txt").write_text("no image")
    (folder / "b" / "._c.JPG").write_bytes(b"macOS")
    return folder


def call(run_dir: Path, photos: Path, out: Path, *options: str) -> int:
    return translate.main(["--run", str(run_dir), str(photos), str(out), *options])


def made(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read(path: Path) -> np.ndarray:
    """RGB pixels, or those of a grey file."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels[..., ::-1] if pixels.ndim == 3 else pixels


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


def test_bad_images_are_named_and_the_others_done(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photos / "b" / "c.JPG").write_bytes(b"\xff\xd8\xff no picture")
    (photos / "e.png").write_bytes((photos / "a.png").read_bytes()[:-100])
    (photos / "f.png").write_bytes(b"")
    write_png(photos / "g.png", np.zeros((7, 9, 3), np.uint8))
    out = tmp_path / "out"
    assert call(run_dir, photos, out, "--no-resize") == 1
    assert made(out).keys() == {"a.png", "b/d.e.png", "translate.json"}
    found = capfd.readouterr()
    for name in ("b/c.JPG", "e.png", "f.png", "g.png"):
        assert f"error: {photos / name}: " in found.err
    assert "smaller than 8 x 8" in found.err and "4 could not be read" in found.out


def test_wrong_calls_write_nothing(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    for run, images, target, options, expected in (
        (tmp_path / "no", photos, out, [], "no: no such directory"),
        (empty, photos, out, [], "no finished stage"),
        (run_dir, tmp_path / "no", out, [], "no: no such directory"),
        (run_dir, empty, out, [], "no images in it"),
        (run_dir, photos, photos / "b" / "out", [], "lies in"),
        (run_dir, photos, photos, [], "lies in"),
        (run_dir, photos, photos / "a.png", [], "lies in"),
        (run_dir, photos / "b", photos, [], "not made by this command"),
        (run_dir, photos, out, ["--translator", "segmenter"], "gan, finetune, finetune/finetune."),
    ):
        before = made(photos)
        assert call(run, images, target, *options) == 1
        assert expected in capfd.readouterr().err
        assert made(photos) == before and not out.exists()
    shutil.copy(photos / "a.png", photos / "a.jpg")
    assert call(run_dir, photos, out) == 1
    assert "would both become" in capfd.readouterr().err and not out.exists()


def test_several_ranks_are_refused(
    tmp_path: Path,
    run_dir: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call(run_dir, photos, tmp_path / "out") == 1
    assert "this command is one process" in capfd.readouterr().err


def test_what_another_translator_made_is_not_mixed(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(run_dir, photos, out, "--translator", "gan", "--predict") == 0
    before = made(out)
    assert call(run_dir, photos, out) == 1
    assert "translator was gan, now finetune" in capfd.readouterr().err
    assert call(run_dir, photos, out, "--translator", "gan", "--no-resize") == 1
    assert "size was [24, 32], now None" in capfd.readouterr().err and made(out) == before
    other = tmp_path / "other"
    assert call(run_dir, photos, other) == 0
    assert made(other)["a.png"] != before["a.png"]


def test_the_control_is_never_taken_unasked(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (run / "finetune" / "done.json").unlink()
    assert call(run, photos, tmp_path / "out") == 1
    assert f"(finished: gan, {CONTROL})" in capfd.readouterr().err
    assert call(run, photos, tmp_path / "out", "--translator", CONTROL) == 0


def test_replaced_weights_are_refused(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    shutil.copy(run / "gan" / "translator.pt", run / "finetune" / "translator.pt")
    assert call(run, photos, tmp_path / "out") == 1
    assert "finetune/translator.pt: is not the file" in capfd.readouterr().err
    (run / "finetune" / "translator.pt").unlink()
    assert call(run, photos, tmp_path / "out") == 1
    assert "finetune/translator.pt: missing" in capfd.readouterr().err


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
