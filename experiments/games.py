"""The four games that two experiments play: three constraints and the vanilla GAN (39 and 41)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

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
    config: Games,
    game: str,
    generator: nn.Module,
    critic: nn.Module,
    *rest: Any,
    falling: float = 1.0,
    **more: Any,
) -> History:
    """The history of one game; rest and more are what ``lib.gan.train_wgan`` takes besides.

    falling: the share of the steps, the last ones, over which the learning rate falls.
    """
    adam = partial(torch.optim.Adam, lr=config.lr, betas=(0.5, 0.9), fused=True)
    train = partial(train_gan, loss="non-saturating")
    if not game.startswith("vanilla"):
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
        schedule=partial(LambdaLR, lr_lambda=Falling(config.steps, falling)),
        samples=config.samples,
        progress=False,
        **more,
    )


@dataclass(frozen=True)
class Falling:
    """1, and over the last steps, a share of them, linearly down to 0.01."""

    steps: int
    share: float

    def __call__(self, t: int) -> float:
        over = max(1.0, self.share * self.steps)
        return 1 - 0.99 * min(1.0, max(0.0, (t - self.steps) / over + 1))
