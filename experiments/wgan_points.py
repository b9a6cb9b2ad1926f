"""Three constraints and the vanilla GAN on the eight Gaussians (slides 39 and 41).

At equal generator steps: the exact W1 of the generator's samples to as many of the target, the
Gaussians found of the eight, and the share of the samples near one of them. "target" has fresh
samples of the target in the generator's place: no generator can be expected to do better. Seed 0
keeps its last samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.games import GAMES, Games, play
from experiments.running import Row
from lib.gan import eight_gaussians, gaussian, modes, point_critic, point_generator
from lib.transport import wasserstein


@dataclass(frozen=True, kw_only=True)
class Config(Games):
    """Four games on the eight Gaussians at equal generator steps, scored by exact W1."""

    steps: int = 1500
    """Generator steps."""
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


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Every game for every seed; ValueError for settings out of range."""
    config.check()
    for seed in range(config.seeds):
        for game in (*GAMES, "target"):
            yield game, seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one game, or draw fresh samples of the target, and score them."""
    target = eight_gaussians(config.samples, torch.Generator().manual_seed(1001))
    if variant == "target":
        points = eight_gaussians(config.samples, torch.Generator().manual_seed(seed))
    else:
        history = play(
            config,
            variant,
            point_generator(hidden=config.hidden, seed=seed),
            point_critic(hidden=config.hidden, seed=seed + 100),
            eight_gaussians(20_000, torch.Generator().manual_seed(1000)),
            gaussian(2),
            target=target,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
        )
        points = history["samples"][-1]
    found, near = modes(points)
    row = {"w1": wasserstein(points, target), "found": found, "near": near}
    return row | ({"samples": points.double().round(decimals=3).tolist()} if seed == 0 else {})
