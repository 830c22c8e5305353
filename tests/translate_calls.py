"""Photographs to translate, and calls of python -m tigan.translate."""

from pathlib import Path

import cv2
import numpy as np
from tiny_data import ORIGINAL, write_png

from tigan import translate


def write_photos(folder: Path) -> Path:
    """Three images in two folders, one of them an odd size, and things that are no images."""
    rng = np.random.default_rng(3)
    for name, size in (("a.png", ORIGINAL), ("b/c.JPG", (37, 50)), ("b/d.e.jpeg", ORIGINAL)):
        write_png(folder / name, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    (folder / "b" / "notes.txt").write_text("no image")
    (folder / "b" / "._c.JPG").write_bytes(b"macOS")
    return folder


def call(run_dir: Path, photos: Path, out: Path, *options: str) -> int:
    """The command's exit code."""
    return translate.main(["--run", str(run_dir), str(photos), str(out), *options])


def made(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file."""
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
