"""The four games that two experiments play: three constraints and the vanilla GAN (39 and 41)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR

from experiments.running import Settings
from lib.gan import History, train_gan, train_wgan

GAMES = ("clip", "penalty", "spectral", "vanilla")


@dataclass(frozen=True, kw_only=True)
class Games(Settings):
    """What all four are trained with."""

    steps: int
    """Generator steps."""
    critic_steps: int = 5
    """Critic steps before each of them."""
    batch_size: int
    """Samples in a batch."""
    lr: float
    """Adam's learning rate, falling linearly to a hundredth of it."""
    clip: float
    """Greatest weight of the critic under clipping."""
    penalty: float
    """Weight of the gradient penalty."""
    samples: int = 1000
    """Samples that are scored, and of the target."""


def play(
    config: Games, game: str, generator: nn.Module, critic: nn.Module, *rest: Any, **more: Any
) -> History:
    """The history of one game; rest and more are what ``lib.gan._training.play`` takes besides."""
    adam = partial(torch.optim.Adam, lr=config.lr, betas=(0.5, 0.9), fused=True)
    train = partial(train_gan, loss="non-saturating")
    if game != "vanilla":
        numbers = {"clip": config.clip, "penalty": config.penalty}
        train = partial(train_wgan, constraint=game, **numbers)
    return train(
        generator,
        critic,
        *rest,
        steps=config.steps,
        critic_steps=config.critic_steps,
        batch_size=config.batch_size,
        generator_optimizer=adam,
        critic_optimizer=adam,
        schedule=partial(LinearLR, start_factor=1.0, end_factor=0.01, total_iters=config.steps),
        samples=config.samples,
        progress=False,
        **more,
    )
