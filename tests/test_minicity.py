"""MiniCity: exact layouts and encodings, same bytes always, all classes, resuming."""

import hashlib
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep import minicity
from data_prep.minicity_canvas import Kind

SIZE = {"height": 48, "width": 64}
CLASSES = [kind for kind in Kind if kind not in (Kind.VOID, Kind.MARKING)]


def render_both(root: Path, processes: int, images: int = 3) -> None:
    common = {**SIZE, "seed": 5, "processes": processes}
    minicity.render_synthia(root / "s", images=images, **common)
    minicity.render_cityscapes(root / "c", train_images=images, val_images=1, **common)


def tree(root: Path) -> dict[str, str]:
    """Relative path -> digest of everything under `root`, hidden files too."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def png_header(path: Path) -> tuple[int, int, int, int]:
    """Width, height, bit depth, colour type (PNG specification, chunk IHDR)."""
    head = path.read_bytes()[:26]
    assert head[12:16] == b"IHDR"
    return struct.unpack(">IIBB", head[16:26])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("minicity")
    render_both(root, processes=1)
    return root


def test_same_bytes_for_any_number_of_processes(rendered: Path, tmp_path: Path) -> None:
    render_both(tmp_path, processes=2)
    assert tree(tmp_path) == tree(rendered)


def test_file_names(rendered: Path) -> None:
    names = set(tree(rendered))
    synthia = {f"s/RAND_CITYSCAPES/{d}/{i:07d}.png" for d in ("RGB", "GT/LABELS") for i in range(3)}
    cities = [("train", "birkental"), ("train", "eschbach"), ("train", "steinfurth")]
    cityscapes = {
        f"c/{kind.split('_')[0]}/{split}/{city}/{city}_000000_000019_{kind}.png"
        for split, city in [*cities, ("val", "marienau")]
        for kind in ("leftImg8bit", "gtFine_labelIds", "gtFine_instanceIds")
    }
    assert names == synthia | cityscapes


def test_synthia_encoding(rendered: Path) -> None:
    folder = rendered / "s" / "RAND_CITYSCAPES"
    assert png_header(folder / "GT" / "LABELS" / "0000001.png") == (64, 48, 16, 2)
    assert png_header(folder / "RGB" / "0000001.png") == (64, 48, 8, 2)
    rgb, ids, instances = minicity.scene("synthetic", seed=5, index=1, **SIZE)
    stored = cv2.imread(str(folder / "GT" / "LABELS" / "0000001.png"), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    # cv2 gives BGR: the first channel of the file, the class, is the last here
    np.testing.assert_array_equal(stored[..., 2], ids)
    np.testing.assert_array_equal(stored[..., 1], instances)
    assert not stored[..., 0].any()
    picture = cv2.imread(str(folder / "RGB" / "0000001.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(picture[..., ::-1], rgb)


def test_cityscapes_encoding(rendered: Path) -> None:
    fine = rendered / "c" / "gtFine" / "val" / "marienau" / "marienau_000000_000019_gtFine"
    assert png_header(Path(f"{fine}_labelIds.png")) == (64, 48, 8, 0)
    assert png_header(Path(f"{fine}_instanceIds.png")) == (64, 48, 16, 0)
    ids = cv2.imread(f"{fine}_labelIds.png", cv2.IMREAD_UNCHANGED)
    instances = cv2.imread(f"{fine}_instanceIds.png", cv2.IMREAD_UNCHANGED)
    assert set(np.unique(ids)) <= {pair[1] for pair in minicity.LABEL_IDS.values()}
    things = np.isin(ids, [minicity.LABEL_IDS[kind][1] for kind in minicity.THINGS])
    np.testing.assert_array_equal(instances[~things], ids[~things])
    np.testing.assert_array_equal(instances[things] // 1000, ids[things])
    assert things.any()


def test_resume_keeps_what_is_there_and_leaves_no_temporary_files(
    rendered: Path, tmp_path: Path
) -> None:
    render_both(tmp_path, processes=1, images=1)
    rgb = tmp_path / "s" / "RAND_CITYSCAPES" / "RGB"
    labels = tmp_path / "s" / "RAND_CITYSCAPES" / "GT" / "LABELS"
    kept = (rgb / "0000000.png").stat().st_mtime_ns
    # as after a kill between the label and the picture: the pair counts as missing
    (labels / "0000001.png").write_bytes(b"half a label")
    seen: list[int] = []
    common = {**SIZE, "seed": 5, "processes": 1}
    minicity.render_synthia(tmp_path / "s", images=3, progress=seen.append, **common)
    minicity.render_cityscapes(tmp_path / "c", train_images=3, val_images=1, **common)
    assert seen == [2, 3]
    assert (rgb / "0000000.png").stat().st_mtime_ns == kept
    assert tree(tmp_path) == tree(rendered)


def test_an_interrupt_ends_the_pool_and_leaves_whole_files_only(
    rendered: Path, tmp_path: Path
) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    common = {**SIZE, "seed": 5, "processes": 2}
    with pytest.raises(KeyboardInterrupt):
        minicity.render_synthia(tmp_path / "s", images=3, progress=stop, **common)
    whole, left = tree(rendered), tree(tmp_path)
    assert left
    # no temporary file either: its name would not be among the finished ones
    assert all(whole[name] == digest for name, digest in left.items())


def test_command_line_writes_both_sets(rendered: Path, tmp_path: Path) -> None:
    counts = ["--synthia-images", "1", "--train-images", "1", "--val-images", "1"]
    size = ["--seed", "5", "--height", "48", "--width", "64", "--processes", "1"]
    assert minicity.main([str(tmp_path), *counts, *size]) == 0
    whole = tree(rendered)
    written = tree(tmp_path)
    assert len(written) == 2 + 3 + 3
    for name, digest in written.items():
        assert whole[name.replace("synthia/", "s/").replace("cityscapes/", "c/")] == digest


@pytest.mark.parametrize("style", ["synthetic", "real"])
def test_all_classes_occur(style: minicity.Style) -> None:
    layout = 0 if style == "synthetic" else 1
    pixels = np.zeros(256, np.int64)
    for index in range(10):
        _, ids, _ = minicity.scene(style, seed=0, index=index, height=96, width=128)
        pixels += np.bincount(ids.ravel(), minlength=256)
    found = {kind.name for kind in CLASSES if pixels[minicity.LABEL_IDS[kind][layout]] >= 20}
    assert found == {kind.name for kind in CLASSES}
    share = pixels / pixels.sum()
    assert 0.15 < share[minicity.LABEL_IDS[Kind.ROAD][layout]] < 0.5
    assert share[minicity.LABEL_IDS[Kind.VOID][layout]] < 0.02
    if style == "synthetic":
        assert 0.0 < share[minicity.LABEL_IDS[Kind.MARKING][layout]] < 0.06


def test_scenes_do_not_depend_on_order_and_streams_differ() -> None:
    first = minicity.scene("real", seed=1, index=4, **SIZE)
    other = minicity.scene("real", seed=1, index=4 + minicity.VAL_OFFSET, **SIZE)
    again = minicity.scene("real", seed=1, index=4, **SIZE)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[1] != other[1]).mean() > 0.1
    seeded = minicity.scene("real", seed=2, index=4, **SIZE)
    assert (first[1] != seeded[1]).mean() > 0.1


def test_styles_differ_in_colour_and_grain() -> None:
    measures = {}
    for style in ("synthetic", "real"):
        rows = []
        for index in range(6):
            rgb, _, _ = minicity.scene(style, seed=0, index=index, **SIZE)
            hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
            rows.append((hsv[..., 1].mean(), rgb[..., 2].mean() - rgb[..., 0].mean()))
        measures[style] = np.mean(rows, axis=0)
    # the game is more saturated and bluer than the photographs
    assert measures["synthetic"][0] > measures["real"][0] + 15
    assert measures["synthetic"][1] > measures["real"][1] + 8


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 140)])
def test_geometry_does_not_depend_on_the_size(height: int, width: int) -> None:
    small = minicity.scene("synthetic", seed=0, index=2, height=height, width=width)[1]
    large = minicity.scene("synthetic", seed=0, index=2, height=2 * height, width=2 * width)[1]
    assert small.shape == (height, width)
    assert (small == large[1::2, 1::2]).mean() > 0.9


@pytest.mark.parametrize(("height", "width"), [(16, 64), (64, 40), (64, 256)])
def test_bad_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"minicity\.height"):
        minicity.scene("real", seed=0, index=0, height=height, width=width)
