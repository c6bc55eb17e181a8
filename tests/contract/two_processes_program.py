"""A training in two processes: `[torchrun --nproc-per-node DEVICES] two_processes_program.py FOLDER DEVICES`."""

from __future__ import annotations

import faulthandler
import sys

import numpy as np
import torch

from toolkit.data.table import task_from_arrays
from toolkit.models.unet import unet
from toolkit.training.config import TrainConfig
from toolkit.training.train import train

if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)  # a process that hangs says where
    torch.set_num_threads(1)
    drawn = np.random.default_rng(0)
    images = drawn.standard_normal((12, 16, 16)).astype(np.float32)
    labels = (images > 0.5).astype(np.uint8)
    task = task_from_arrays(list(images), list(labels), classes={0: "background", 1: "bright"})
    torch.manual_seed(0)
    config = TrainConfig(
        steps=4,
        batch_size=4,
        devices=int(sys.argv[2]),
        device="cpu",
        optimizer="sgd",
        learning_rate=0.1,
        schedule="constant",
        augmentation="none",
        validate_every=2,
        checkpoint_every=2,
        select="last",
        log_every=1,
    )
    train(unet(1, 2, channels=(4, 8)), task, config=config, out=sys.argv[1], progress=False)
