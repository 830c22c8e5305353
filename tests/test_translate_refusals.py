"""python -m tigan.translate: bad images, too large ones, bad calls, folders of something else."""

import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import ORIGINAL, write_png
from tiny_run import CONTROL
from translate_calls import call, made, write_photos

from tigan import checkpoint

pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def test_bad_images_are_named_and_the_others_done(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (photos / "b" / "c.JPG").write_bytes(b"\xff\xd8\xff no picture")
    (photos / "e.png").write_bytes((photos / "a.png").read_bytes()[:-100])
    (photos / "f.png").write_bytes(b"")
    write_png(photos / "g.png", np.zeros((7, 9, 3), np.uint8))
    content = bytearray((photos / "b" / "d.e.jpeg").read_bytes())
    start = content.index(b"\xff\xc0") + 5  # height and width
    content[start : start + 4] = b"\xc0\x00\xc0\x00"
    (photos / "h.jpg").write_bytes(content)
    out = tmp_path / "out"
    assert call(run_dir, photos, out, "--no-resize") == 1
    assert made(out).keys() == {"a.png", "b/d.e.png", "translate.json"}
    found = capfd.readouterr()
    for name in ("b/c.JPG", "e.png", "f.png", "g.png", "h.jpg"):
        assert f"error: {photos / name}: " in found.err
    assert "smaller than 8 x 8" in found.err and "OpenCV refuses it (pixels" in found.err
    assert "2 images translated" in found.out and "5 failed" in found.out


@contextmanager
def little_memory(spare: int) -> Iterator[None]:
    """This process may take no more than `spare` further bytes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="limits the memory of a CPU"
)
def test_too_large_an_image_does_not_stop_the_others(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "out", ("--no-resize", "--predict")
    assert call(run_dir, photos, tmp_path / "warm", *options) == 0
    # 48 MB as bytes; as the network's numbers 192 MB, several times.
    write_png(photos / "b" / "big.png", np.zeros((4000, 4000, 3), np.uint8))
    with little_memory(250 << 20):
        assert call(run_dir, photos, out, *options) == 1
    found = capfd.readouterr()
    assert (
        f"error: {photos / 'b' / 'big.png'}: 4000 x 4000 pixels are too large for the memory of "
        "this device: leave out --no-resize"
    ) in found.err
    assert "3 images translated" in found.out and "1 failed" in found.out
    assert made(out).keys() == made(tmp_path / "warm").keys()


def test_other_errors_of_torch_are_not_taken_for_memory(
    tmp_path: Path, run_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.nn.functional, "pad", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        call(run_dir, photos, tmp_path / "out", "--no-resize")


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


def test_another_folder_of_the_same_names_is_refused(
    tmp_path: Path,
    run_dir: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    write_png(other / "a.png", np.zeros((*ORIGINAL, 3), np.uint8))
    assert call(run_dir, photos, out) == 0
    before = made(out)
    assert call(run_dir, other, out) == 1
    expected = f"input was {photos.resolve()}, now {other.resolve()}; choose another folder"
    assert expected in capfd.readouterr().err and made(out) == before
    monkeypatch.chdir(tmp_path)
    assert call(run_dir, Path("photos"), out) == 0  # the same one
    assert "3 were there already" in capfd.readouterr().out


def test_predictions_of_another_f_are_not_mixed(
    tmp_path: Path, run_dir: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    out, of_gan = tmp_path / "out", ("--translator", "gan")
    assert call(run, photos, out, *of_gan) == 0
    assert "segmenter" not in json.loads((out / "translate.json").read_text())
    for options in (["--predict"], []):  # the second call keeps what the first recorded
        assert call(run, photos, out, *of_gan, *options) == 0
        record = json.loads((out / "translate.json").read_text())
        assert record["segmenter"] == checkpoint.file_digest(run / "segmenter" / "segmenter.pt")
    weights = torch.load(run / "segmenter" / "segmenter.pt", weights_only=True)
    weights["states"]["segmenter"] = {k: v + 1 for k, v in weights["states"]["segmenter"].items()}
    torch.save(weights, run / "segmenter" / "segmenter.pt")
    done = json.loads((run / "segmenter" / "done.json").read_text())
    digest = checkpoint.file_digest(run / "segmenter" / "segmenter.pt")
    done["outputs"]["segmenter.pt"]["digest"] = digest
    (run / "segmenter" / "done.json").write_text(json.dumps(done))
    before = made(out)
    assert call(run, photos, out, *of_gan, "--predict") == 1
    assert f"segmenter was {record['segmenter']}, now {digest}" in capfd.readouterr().err
    assert made(out) == before
    assert call(run, photos, out, *of_gan) == 0  # no prediction is asked for


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
