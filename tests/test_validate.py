"""`data_prep.validate` finds every kind of damage and says what the packed set holds."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.validate import main


@pytest.fixture
def packed(tmp_path: Path, packed_synthia: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(packed_synthia, tmp_path / "packed"))


def test_a_good_set_and_its_shares(
    packed_cityscapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(packed_cityscapes), "--class-set", "camvid11"]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert "train: 7 samples in 3 shards, 0 bad" in out
    assert "val: 4 samples in 2 shards, 0 bad" in out
    shares = {
        line.split("%")[1].strip(): float(line.split("%")[0])
        for line in out.split("val:")[1].splitlines()
        if "%" in line
    }
    assert len(shares) == 12 and abs(sum(shares.values()) - 100) < 0.1
    assert shares["fence"] == 0 and shares["sky"] > 0
    # Ids 0 and 1 are the ignored ones of the tiny data set.
    from data_prep.shards import PackedSplit

    split = PackedSplit(packed_cityscapes, "val")
    ignored = np.mean([split.labels(i) <= 1 for i in range(len(split))])
    assert shares["ignored"] == pytest.approx(100 * ignored, abs=0.01)


def test_any_flipped_byte_is_found(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = packed / "train-00001.h5"
    content = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(content), 40).tolist()
    for place in [*range(0, 2048, 64), *places, len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        assert main([str(packed)]) == 1, place
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert "train-00001.h5: damaged (changed bytes); delete the file and run" in errors[0]
    path.write_bytes(content)
    assert main([str(packed)]) == 0


def test_truncated_and_missing_shards_are_each_one_line(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = packed / "train-00000.h5"
    path.write_bytes(path.read_bytes()[:-1])
    (packed / "val-00000.h5").unlink()
    assert main([str(packed)]) == 1
    out, err = capsys.readouterr()
    truncated, missing = err.splitlines()
    assert "train-00000.h5: damaged (" in truncated and "bytes instead of" in truncated
    assert "val-00000.h5: cannot be read (No such file or directory)" in missing
    assert "train: 7 samples in 3 shards, 1 bad" in out


def test_a_damaged_index_and_an_unfinished_set(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = packed / "index.json"
    content = index.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 60)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        index.write_bytes(damaged)
        # White space may change into other white space: then nothing is lost.
        if main([str(packed)]) == 0:
            assert content[place : place + 1].isspace()
    capsys.readouterr()
    assert main([str(tmp_path)]) == 1
    assert "index.json: not there: packing has not finished" in capsys.readouterr().err


def test_unknown_class_set(packed_synthia: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(packed_synthia), "--class-set", "nope"]) == 1
    assert "no 'nope' there; there are:" in capsys.readouterr().err
