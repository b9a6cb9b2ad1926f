"""Three constraints and the vanilla GAN on the eight Gaussians (slides 39 and 41).

At equal generator steps: the exact W1 of the generator's samples to as many of the target, the
Gaussians found of the eight, and the share of the samples near one of them. "target" has fresh
samples of the target in the generator's place: no generator can be expected to do better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LinearLR

from experiments.running import Row, Settings
from lib.gan import train_gan, train_wgan
from lib.players import gaussian, point_critic, point_generator
from lib.points import eight_gaussians, modes
from lib.transport import wasserstein

GAMES = ("clip", "penalty", "spectral", "vanilla", "target")


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Four games on the eight Gaussians at equal generator steps, scored by exact W1."""

    steps: int = 1500
    """Generator steps."""
    critic_steps: int = 5
    """Critic steps before each of them."""
    batch_size: int = 256
    """Samples in a batch."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """Widths of the hidden layers of both networks."""
    lr: float = 1e-3
    """Adam's learning rate, falling linearly to a hundredth of it."""
    clip: float = 0.1
    """Greatest weight of the critic under clipping."""
    penalty: float = 0.1
    """Weight of the gradient penalty."""
    samples: int = 1000
    """Samples that are scored, and of the target."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Every game for every seed."""
    for seed in range(config.seeds):
        for game in GAMES:
            yield game, seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one game, or draw fresh samples of the target, and score them."""
    target = eight_gaussians(config.samples, torch.Generator().manual_seed(1001))
    if variant == "target":
        points = eight_gaussians(config.samples, torch.Generator().manual_seed(seed))
    else:
        adam = partial(torch.optim.Adam, lr=config.lr, betas=(0.5, 0.9), fused=True)
        train = partial(train_gan, loss="non-saturating")
        if variant != "vanilla":
            numbers = {"clip": config.clip, "penalty": config.penalty}
            train = partial(train_wgan, constraint=variant, **numbers)
        history = train(
            point_generator(hidden=config.hidden, seed=seed),
            point_critic(hidden=config.hidden, seed=seed + 100),
            eight_gaussians(20_000, torch.Generator().manual_seed(1000)),
            gaussian(2),
            steps=config.steps,
            critic_steps=config.critic_steps,
            batch_size=config.batch_size,
            generator_optimizer=adam,
            critic_optimizer=adam,
            schedule=partial(LinearLR, start_factor=1.0, end_factor=0.01, total_iters=config.steps),
            samples=config.samples,
            target=target,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            progress=False,
        )
        points = history["samples"][-1]
    found, near = modes(points)
    return {"w1": wasserstein(points, target), "found": found, "near": near}
