"""MiniCity: a rendered stand-in for both data sets, in their exact layouts and encodings.

    python -m data_prep.minicity OUT_DIR

writes OUT_DIR/synthia (SYNTHIA-RAND-CITYSCAPES) and OUT_DIR/cityscapes (Cityscapes), so that the
whole experiment runs without any download. Every picture is a pure function of style, seed,
index and size; an interrupted rendering goes on where it stopped.
"""

import argparse
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.atomic import replacing
from data_prep.config import MiniCityConfig
from data_prep.minicity_brush import Brush
from data_prep.minicity_canvas import SUPERSAMPLING, Canvas, Kind
from data_prep.minicity_palette import PALETTES, Style
from data_prep.minicity_scene import paint_scene
from data_prep.minicity_style import develop, draw_camera, draw_look
from data_prep.minicity_traffic import draw_plan

Progress = Callable[[int], None]

# kind -> (Synthia id, Cityscapes id); lane markings are a Synthia class of their own
LABEL_IDS: dict[Kind, tuple[int, int]] = {
    Kind.VOID: (0, 4),
    Kind.ROAD: (3, 7),
    Kind.SIDEWALK: (4, 8),
    Kind.BUILDING: (2, 11),
    Kind.WALL: (21, 12),
    Kind.FENCE: (5, 13),
    Kind.POLE: (7, 17),
    Kind.TRAFFIC_LIGHT: (15, 19),
    Kind.TRAFFIC_SIGN: (9, 20),
    Kind.VEGETATION: (6, 21),
    Kind.SKY: (1, 23),
    Kind.PERSON: (10, 24),
    Kind.RIDER: (17, 25),
    Kind.CAR: (8, 26),
    Kind.BUS: (19, 28),
    Kind.MOTORCYCLE: (12, 32),
    Kind.BICYCLE: (11, 33),
    Kind.MARKING: (22, 7),
}
THINGS = (Kind.PERSON, Kind.RIDER, Kind.CAR, Kind.BUS, Kind.MOTORCYCLE, Kind.BICYCLE)
TRAIN_CITIES = ("birkental", "eschbach", "steinfurth")
VAL_CITIES = ("marienau",)
VAL_OFFSET = 1_000_000_000  # first scene index of the val split: no scene is shared with train


def scene(
    style: Style, *, seed: int, index: int, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
    """Render one scene; a pure function of its arguments.

    Returns RGB [H, W, 3], label ids [H, W] of the style's layout ('synthetic': Synthia,
    'real': Cityscapes) and instances [H, W]: 'synthetic' the object's number from 1, 0 for
    stuff; 'real' the label id for stuff and id * 1000 + n for things. Raises ValueError for
    a size below 32 x 32 or a ratio of width to height outside 0.8..2.5.
    """
    if min(height, width) < 32 or not 0.8 <= width / height <= 2.5:
        raise ValueError(
            f"height x width: found {height} x {width}, expected at least 32 x 32 and "
            "0.8 <= width / height <= 2.5; change minicity.height or minicity.width"
        )
    code = 1 if style == "synthetic" else 2
    layout, optics = (np.random.default_rng([code, seed, index, part]) for part in (0, 1))
    plan, look = draw_plan(layout), draw_look(style, optics)
    canvas = Canvas(draw_camera(style, plan.lane, optics), look.sun, height, width)
    paint_scene(Brush(canvas, PALETTES[style], layout), plan)
    surfaces = canvas.finish()
    owner = surfaces.owner[1::SUPERSAMPLING, 1::SUPERSAMPLING]
    ids, instances = _labels(style, owner)
    return develop(surfaces, look, optics), ids, instances


def _labels(style: Style, owner: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Label ids and instances of a layout from kind * 1000 + object number."""
    layout = 0 if style == "synthetic" else 1
    kinds, numbers = np.divmod(owner, 1000)
    table = np.zeros(len(Kind), np.uint8)
    thing = np.zeros(len(Kind), bool)
    for kind, pair in LABEL_IDS.items():
        table[kind] = pair[layout]
        thing[kind] = kind in THINGS
    ids, things = table[kinds], thing[kinds]
    if style == "real":
        counted = np.where(things, ids.astype(np.int32) * 1000 + numbers, ids)
        return ids, counted.astype(np.uint16)
    # Numbers start again at 0 for each kind; 16 kinds times 1000 fit into 16 bits.
    return ids, np.where(things, owner - 1000 * int(min(THINGS)) + 1, 0).astype(np.uint16)


def _write(path: Path, picture: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    with replacing(path) as temporary:
        if not cv2.imwrite(str(temporary), picture):
            raise OSError(f"{path}: cannot be written; is the disk full?")


def _synthia_paths(root: Path, index: int) -> tuple[Path, Path]:
    """The RGB and the label file of a Synthia-style image."""
    top, name = root / "RAND_CITYSCAPES", f"{index:07d}.png"
    return top / "RGB" / name, top / "GT" / "LABELS" / name


def _write_synthia(root: Path, seed: int, height: int, width: int, index: int) -> None:
    """Render and write one Synthia-style image, RGB last: it marks the pair as complete."""
    rgb_path, label_path = _synthia_paths(root, index)
    rgb, ids, instances = scene("synthetic", seed=seed, index=index, height=height, width=width)
    labels = np.zeros((height, width, 3), np.uint16)  # cv2 writes BGR: class in the last
    labels[..., 2], labels[..., 1] = ids, instances
    _write(label_path, labels)
    _write(rgb_path, rgb[..., ::-1])


def _cityscapes_path(root: Path, split: str, number: int, kind: str) -> Path:
    """The file of a Cityscapes-style image; `kind` as in `leftImg8bit`, `gtFine_labelIds`."""
    cities = VAL_CITIES if split == "val" else TRAIN_CITIES
    city, sequence = cities[number % len(cities)], number // len(cities)
    name = f"{city}_{sequence:06d}_000019_{kind}.png"
    return root / kind.split("_")[0] / split / city / name


def _write_cityscapes(
    root: Path, seed: int, height: int, width: int, task: tuple[str, int]
) -> None:
    """Render and write one Cityscapes-style image, RGB last: it marks the set as complete."""
    split, number = task
    index = number + (VAL_OFFSET if split == "val" else 0)
    rgb, ids, instances = scene("real", seed=seed, index=index, height=height, width=width)
    _write(_cityscapes_path(root, split, number, "gtFine_labelIds"), ids)
    _write(_cityscapes_path(root, split, number, "gtFine_instanceIds"), instances)
    _write(_cityscapes_path(root, split, number, "leftImg8bit"), rgb[..., ::-1])


def render_synthia(
    root: Path,
    *,
    images: int,
    seed: int,
    height: int,
    width: int,
    processes: int,
    progress: Progress | None = None,
) -> None:
    """Write ROOT/RAND_CITYSCAPES/{RGB,GT/LABELS}/NNNNNNN.png, 0 .. images - 1.

    Labels are 16-bit RGB: class, instance, 0. What is there is kept. `progress` is called with
    the number of images finished so far. Raises ValueError for a size that `scene` refuses.
    """
    todo = [i for i in range(images) if not _synthia_paths(root, i)[0].exists()]
    work = partial(_write_synthia, root, seed, height, width)
    _run(work, todo, processes, images - len(todo), progress)


def render_cityscapes(
    root: Path,
    *,
    train_images: int,
    val_images: int,
    seed: int,
    height: int,
    width: int,
    processes: int,
    progress: Progress | None = None,
) -> None:
    """Write ROOT/{leftImg8bit,gtFine}/{train,val}/CITY/CITY_SSSSSS_FFFFFF_TYPE.png.

    Label ids are the regular Cityscapes ids, 8-bit; instance ids are 16-bit. What is there is
    kept. `progress` as in `render_synthia`. Raises ValueError for a size that `scene` refuses.
    """
    tasks = [("train", i) for i in range(train_images)] + [("val", i) for i in range(val_images)]
    todo = [t for t in tasks if not _cityscapes_path(root, *t, "leftImg8bit").exists()]
    work = partial(_write_cityscapes, root, seed, height, width)
    _run(work, todo, processes, len(tasks) - len(todo), progress)


def _stop(signal_number: int, frame: object) -> None:
    """Turn a signal into an exception, so that temporary files are removed on the way out."""
    raise SystemExit(128 + signal_number)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends its workers by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    cv2.setNumThreads(1)


def _run(
    work: Callable[..., None],
    tasks: Sequence[int] | Sequence[tuple[str, int]],
    processes: int,
    finished: int,
    progress: Progress | None,
) -> None:
    """Run `work` on every task, here or in a pool of spawned processes."""
    if processes < 1:
        raise ValueError(f"processes: found {processes}, expected 1 or more")

    def count(done: int) -> None:
        if progress is not None:
            progress(done)

    if processes == 1 or len(tasks) < 2:
        cv2.setNumThreads(1)
        for done, task in enumerate(tasks, finished + 1):
            work(task)
            count(done)
        return
    # spawn: the parent may hold threads and MPI, which a forked child must not inherit.
    context = multiprocessing.get_context("spawn")
    # Leaving the block by an exception (KeyboardInterrupt, SystemExit) terminates the workers.
    with context.Pool(min(processes, len(tasks)), _start_worker) as pool:
        for done, _ in enumerate(pool.imap_unordered(work, tasks, chunksize=1), finished + 1):
            count(done)
        pool.close()
        pool.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: render both data sets into one folder."""
    defaults = MiniCityConfig()
    parser = argparse.ArgumentParser(prog="python -m data_prep.minicity", description=main.__doc__)
    parser.add_argument("out_dir", type=Path, help="receives synthia/ and cityscapes/")
    for name, value in defaults.model_dump().items():
        flag = "--" + name.replace("_", "-")
        help_text = MiniCityConfig.model_fields[name].description
        parser.add_argument(flag, type=int, default=value, help=f"{help_text} (default {value})")
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default 2)")
    options = parser.parse_args(arguments)
    size = {"seed": options.seed, "height": options.height, "width": options.width}

    def show(done: int) -> None:
        if done % 50 == 0:
            print(f"{done} images", file=sys.stderr, flush=True)

    common = {**size, "processes": options.processes}
    print(f"{options.out_dir / 'synthia'}: {options.synthia_images} images", file=sys.stderr)
    render_synthia(
        options.out_dir / "synthia", images=options.synthia_images, progress=show, **common
    )
    real = options.train_images, options.val_images
    print(f"{options.out_dir / 'cityscapes'}: {sum(real)} images", file=sys.stderr)
    render_cityscapes(
        options.out_dir / "cityscapes",
        train_images=real[0],
        val_images=real[1],
        progress=show,
        **common,
    )
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
