"""One full-scale stage on tiny crops: rank_stage.py ROOT STAGE FOLDER, under torchrun."""

import sys
from pathlib import Path

from tiny_jobs import job

from tigan import distributed, finetune, gan, preemption, segmenter
from tigan.config import FinetuneStage, GanStage, SegmenterStage

CROP = [64, 64]
GAN = {"crop": CROP, "images": 4, "decay_from": 2, "batch_size": 2}  # all else: CycleGAN's
FINETUNE = {"labels": 4, "alpha": 0.5, "images": 8, "decay_from": 4, "batch_size": 2}
SEGMENTER = {"crop": CROP, "images": 16, "batch_size": 4}  # DeepLabV3-ResNet101 by default
STEPS = 4


def main(root: Path, stage: str, folder: Path) -> None:
    """Run the stage from its newest checkpoint; it checkpoints after every step."""
    roles = {"synthetic": root / "synthia", "real": root / "cityscapes"}
    roles |= {name: root / name for name in ("segmenter", "gan")}
    preemption.install()
    with distributed.session(threads=1):
        if stage == "segmenter":
            science = {"segmenter": SEGMENTER, "classes": "synthia16"}
            segmenter.run(_job(folder, SegmenterStage.model_validate(science), roles, 4))
        elif stage == "gan":
            gan.run(_job(folder, GanStage.model_validate({"gan": GAN}), roles, 2))
        else:
            labelled = FINETUNE | {"labelled_per_step": 2}
            science = {"gan": GAN, "finetune": labelled, "classes": "synthia16"}
            finetune.run(_job(folder, FinetuneStage.model_validate(science), roles, 2))


def _job(folder, science, roles, images):  # type: ignore[no-untyped-def]
    return job(folder, science, roles, checkpoint_images=images, curve_points=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
