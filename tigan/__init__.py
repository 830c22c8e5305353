"""The method: segmenter, CycleGAN, task-informed finetuning, evaluation, report."""
