"""The keywords that train_wgan and train_gan have in common with any long run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

ScheduleOf = Callable[[Optimizer], LRScheduler]


class RunSettings(TypedDict, total=False):
    """How a training is scored, kept and computed: more keywords of train_wgan and train_gan.

    evaluate_every: generator steps between two scores, of which the first is before and the last
    after the training; None: at most ten and the first, 0: none. samples: the size of the sample
    that is scored, 500, always from the same noise. target: [m, ...], what it is compared with;
    None: as many of real, chosen once. schedule: optimizer -> learning rate schedule, of both
    optimizers, stepped after each generator step; None: constant rates.
    seed: of every draw, 0; all but the points of a penalty are the same on every device.
    checkpoint, every, device, precision and progress: as in ``lib.training.fit``. compile: run
    both networks through ``torch.compile``, though not for a penalty, as it has no second
    derivatives.
    """

    evaluate_every: int | None
    samples: int
    target: Tensor | None
    schedule: ScheduleOf | None
    seed: int
    checkpoint: str | Path | None
    every: float
    device: str | torch.device | None
    precision: str
    compile: bool
    progress: bool | None
