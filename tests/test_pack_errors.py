"""Every way in which packing can fail: what it says, its exit code, and that nothing is lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from tiny_data import contents, flip, write_png

from data_prep.config import PackConfig
from data_prep.index import FORMAT_VERSION, seal
from data_prep.listing import SourceError
from data_prep.pack import main, pack
from data_prep.shards import PackedSplit
from data_prep.survey import PackJob

pytestmark = pytest.mark.usefixtures("_no_launcher")
SIZE = ["--height=24", "--width=32"]
OPTIONS = [*SIZE, "--images-per-shard=3", "--val-images=3", "--subset"]
Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Packs, which must fail and leave `packed` as it is; returns the message."""

    def refuse(root: Path, packed: Path, *options: str, kind: str = "synthia") -> str:
        before = contents(packed)
        capsys.readouterr()
        assert main([kind, str(root), str(packed), *(options or OPTIONS)]) == 1
        assert contents(packed) == before
        message = capsys.readouterr().err
        assert message.startswith("error: ") and "Traceback" not in message
        return message

    return refuse


def label(root: Path, i: int) -> Path:
    return root / f"RAND_CITYSCAPES/GT/LABELS/{i:07d}.png"


def image(root: Path, i: int) -> Path:
    return root / f"RAND_CITYSCAPES/RGB/{i:07d}.png"


def test_eight_bit_labels_all_over(synthia_copy: Path, tmp_path: Path, refusal: Refusal) -> None:
    for i in range(10):
        write_png(label(synthia_copy, i), np.ones((36, 48, 3), np.uint8))
    message = refusal(synthia_copy, tmp_path / "packed")
    first, *shown, last = message.splitlines()
    assert first == "error: 10 of 10 images cannot be packed:" and last == "  and 7 more"
    assert len(shown) == 3
    for i, line in zip((1, 3, 4), shown, strict=True):  # in the order of the shards
        assert line == (
            f"  {label(synthia_copy, i)}: expected a PNG of 16 bits and colour type 2, found 8 "
            "bits and colour type 2; use the data set's own files, not a converted copy"
        )


@pytest.mark.parametrize(
    ("kind", "pixels", "found"),
    [
        ("synthia", np.ones((36, 48), np.uint16), "16 bits and colour type 0"),
        ("synthia", np.ones((36, 48), np.uint8), "8 bits and colour type 0"),
        ("cityscapes", np.ones((36, 48, 3), np.uint8), "8 bits and colour type 2"),
        ("cityscapes", np.ones((36, 48), np.uint16), "16 bits and colour type 0"),
        ("cityscapes", "palette", "8 bits and colour type 3"),
    ],
)
def test_converted_labels(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    refusal: Refusal,
    kind: str,
    pixels: np.ndarray | str,
    found: str,
) -> None:
    root = request.getfixturevalue(f"{kind}_copy")
    [path] = root.glob(f"**/*{'LABELS/0000007.png' if kind == 'synthia' else 't_000002*Ids.png'}")
    if isinstance(pixels, str):  # cv2 writes no palette: make the header say so
        content = bytearray(path.read_bytes())
        content[25] = 3
        path.write_bytes(content)
    else:
        assert cv2.imwrite(str(path), pixels)
    options = OPTIONS if kind == "synthia" else [*SIZE, "--subset"]
    message = refusal(root, tmp_path / "packed", *options, kind=kind)
    assert f"error: {path}: expected a PNG of {'16' if kind == 'synthia' else '8'} bits" in message
    assert f"found {found}; use the data set's own files" in message


def test_unofficial_labels(synthia_copy: Path, tmp_path: Path, refusal: Refusal) -> None:
    folder = synthia_copy / "RAND_CITYSCAPES/GT"
    (folder / "LABELS").rename(folder / "parsed_LABELS")
    message = refusal(synthia_copy, tmp_path / "packed")
    assert f"{folder}/parsed_LABELS: an unofficial 8-bit export" in message
    assert "expected the data set's own 16-bit GT/LABELS" in message


def test_a_missing_label(synthia_copy: Path, tmp_path: Path, refusal: Refusal) -> None:
    label(synthia_copy, 7).unlink()
    message = refusal(synthia_copy, tmp_path / "packed")
    assert "1 images without a label (0000007), of 10 images and 9 labels; complete the" in message


def test_sizes_that_differ(synthia_copy: Path, tmp_path: Path, refusal: Refusal) -> None:
    write_png(image(synthia_copy, 7), np.zeros((30, 40, 3), np.uint8))
    message = refusal(synthia_copy, tmp_path / "packed")
    assert f"{image(synthia_copy, 7)} has 40 x 30 pixels, but" in message
    assert f"{label(synthia_copy, 7)} 48 x 36; use the data set's own files" in message


def test_a_truncated_file_is_found_before_anything_is_written(
    synthia_copy: Path, tmp_path: Path, refusal: Refusal
) -> None:
    for path in (image(synthia_copy, 6), label(synthia_copy, 4)):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 9 // 10])
        message = refusal(synthia_copy, tmp_path / "packed")
        assert f"{path}: damaged PNG file (cut short, " in message
        path.write_bytes(content)


def test_a_file_damaged_in_the_middle_keeps_what_is_complete(
    synthia_copy: Path, packed_synthia: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The last item, in the last shard: the others are complete before it is read.
    packed, good = tmp_path / "packed", contents(packed_synthia)
    arguments = ["synthia", str(synthia_copy), str(packed), *OPTIONS]
    for path in (image(synthia_copy, 6), label(synthia_copy, 6)):
        flip(path, path.stat().st_size // 2)
        assert main(arguments) == 1
        message = f"error: {path}: damaged PNG file (cut short, "
        assert message in capsys.readouterr().err
        assert contents(packed) == {name: good[name] for name in good if "train" in name}
        flip(path, path.stat().st_size // 2)
    assert main(arguments) == 0
    assert contents(packed) == good


def test_unknown_label_ids(
    synthia_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, packed = label(synthia_copy, 6), tmp_path / "packed"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    labels[:2, :5, 2], labels[3, 0, 2] = 99, 300
    assert cv2.imwrite(str(path), labels)
    assert main(["synthia", str(synthia_copy), str(packed), *OPTIONS]) == 1
    assert (
        f"error: {path}: unknown label ids 99, 300 (11 of 1728 pixels); expected ids of the "
        "synthia label system; where they are your own, name them in a class set in configs/classes"
    ) in capsys.readouterr().err
    assert sorted(contents(packed)) == [f"train-0000{i}.h5" for i in range(3)]


@pytest.mark.parametrize("kind", ["synthia", "cityscapes"])
def test_another_number_of_images_than_was_published(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    refusal: Refusal,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    root = request.getfixturevalue(f"{kind}_root")
    message = refusal(root, tmp_path / "packed", *SIZE, kind=kind)
    numbers = ["10", "9,400"] if kind == "synthia" else ["7", "4", "2,975", "500"]
    assert all(f"{number} in " in message for number in numbers)
    assert str(root) in message and "complete it, or pack what is there with --subset" in message
    assert not (tmp_path / "packed").exists()
    assert main([kind, str(root), str(tmp_path / "packed"), *SIZE, "--subset"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("warning: ") and all(f"{number} in " in out for number in numbers)


def test_an_image_in_both_splits(cityscapes_copy: Path, tmp_path: Path, refusal: Refusal) -> None:
    for tree in ("leftImg8bit", "gtFine"):
        city = cityscapes_copy / tree / "train" / "bochum"
        shutil.copytree(city, cityscapes_copy / tree / "val" / "bochum")
    message = refusal(cityscapes_copy, tmp_path / "packed", *SIZE, "--subset", kind="cityscapes")
    assert "3 images stand in both train and val (bochum_000000_000019, " in message
    assert "take them out of one of the two" in message


def test_data_that_changed_since_they_were_planned(synthia_copy: Path, packed_copy: Path) -> None:
    before = contents(packed_copy)
    config = PackConfig(height=24, width=32, images_per_shard=3, val_images=3)
    planned = PackedSplit(packed_copy, "train").fingerprint
    job = PackJob("synthia", synthia_copy, packed_copy, config, subset=True, fingerprint=planned)
    pack(job)
    image(synthia_copy, 3).write_bytes(image(synthia_copy, 3).read_bytes() + b"\0")
    message = rf"its files changed .* \(fingerprint \w+, expected {planned}\); give the driver's"
    with pytest.raises(SourceError, match=message):
        pack(job)
    assert contents(packed_copy) == before


def set_version(path: Path, version: int) -> None:
    """Make a shard say that another version of the code wrote it."""
    with h5py.File(path, "r+") as file:
        recipe = file.attrs["recipe"]
        old = f'"format_version": {FORMAT_VERSION}'
        assert old in recipe
        file.attrs.modify("recipe", recipe.replace(old, f'"format_version": {version}'))
    seal(path)  # HDF5 has cut off what stood behind its own end


def test_mixed_versions_of_the_format(
    synthia_root: Path, packed_copy: Path, refusal: Refusal
) -> None:
    index, shard = packed_copy / "index.json", packed_copy / "train-00000.h5"
    good = index.read_text()
    index.write_text(good.replace('"format_version": 2', '"format_version": 1'))
    message = refusal(synthia_root, packed_copy)
    assert f"{index}: format_version 1, expected 2; pack the data set again into" in message
    index.write_text(good)
    set_version(shard, 1)
    assert f"{shard}: does not match its digest in index.json" in refusal(synthia_root, packed_copy)
    index.unlink()
    message = refusal(synthia_root, packed_copy)
    assert f"{shard}: format_version 1, expected 2; pack the data set again into" in message


def test_a_shard_of_the_first_version(
    synthia_root: Path, packed_copy: Path, refusal: Refusal
) -> None:
    shard = packed_copy / "train-00000.h5"
    (packed_copy / "index.json").unlink()
    set_version(shard, 1)
    with h5py.File(shard, "r+") as file:  # which had no histograms
        del file["image_histograms"], file["label_histograms"]
    message = refusal(synthia_root, packed_copy)
    assert f"{shard}: its last 8 bytes are not the digest of those before" in message
    assert "or of format version 1; delete the file and run" in message


def test_shards_of_another_packing(
    synthia_root: Path,
    packed_copy: Path,
    packed_cityscapes: Path,
    tmp_path: Path,
    refusal: Refusal,
) -> None:
    config = PackConfig(height=16, width=32, images_per_shard=3, val_images=3)
    pack(PackJob("synthia", synthia_root, tmp_path / "lower", config, subset=True))
    index, shard = packed_copy / "index.json", packed_copy / "train-00000.h5"
    good = index.read_bytes()
    for other, difference in (
        (tmp_path / "lower", "pack.height: found 16, expected 24"),
        (packed_cityscapes, "source: found 'cityscapes', expected 'synthia'"),
        (packed_copy, "shard: found 1, expected 0"),
    ):
        name = "train-00001.h5" if other == packed_copy else shard.name
        shutil.copy(other / name, shard)
        message = refusal(synthia_root, packed_copy)
        assert f"{shard}: does not match its digest in index.json" in message
        assert "delete the file and run `python -m data_prep.pack` again" in message
        index.unlink()
        message = refusal(synthia_root, packed_copy)
        assert f"{shard}: was packed otherwise: " in message and difference in message
        index.write_bytes(good)
    shutil.copy(tmp_path / "lower" / "index.json", index)
    message = refusal(synthia_root, packed_copy)
    assert f"{packed_copy}: already holds a data set packed otherwise: pack.height: " in message
    assert "found 16, expected 24; choose another directory" in message


def test_shards_that_another_packing_left_behind(
    synthia_root: Path, packed_copy: Path, refusal: Refusal
) -> None:
    # An unfinished packing into smaller shards, whose first one is not there yet.
    (packed_copy / "index.json").unlink()
    (packed_copy / "train-00000.h5").unlink()
    options = [*SIZE, "--images-per-shard=256", "--subset"]
    assert f"{packed_copy}" in refusal(synthia_root, packed_copy, *options)


def test_a_directory_that_cannot_be_made(
    synthia_root: Path, tmp_path: Path, refusal: Refusal
) -> None:
    (tmp_path / "file").write_text("mine")
    message = refusal(synthia_root, tmp_path / "file" / "packed")
    assert "file/packed: cannot be written to (Not a directory); choose another dir" in message
    assert (tmp_path / "file").read_text() == "mine"
