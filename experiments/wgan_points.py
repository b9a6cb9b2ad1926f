"""Three constraints and the vanilla GAN on the eight Gaussians (slides 39 and 41).

At equal generator steps: the exact W1 of 1,000 samples to 1,000 of the target, the Gaussians
found of the eight, and the share of the samples near one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LinearLR

from lib.gan import train_gan, train_wgan
from lib.play import History
from lib.players import gaussian, point_critic, point_generator
from lib.points import eight_gaussians, modes
from lib.transport import wasserstein

SAMPLES = 1000
SHARED = {"steps": 1500, "critic_steps": 5, "batch_size": 256}
GAMES: dict[str, tuple[Callable[..., History], str, dict[str, float]]] = {
    "clip": (train_wgan, "clip", {"clip": 0.1}),
    "penalty": (train_wgan, "penalty", {"penalty": 0.1}),
    "spectral": (train_wgan, "spectral", {}),
    "vanilla": (train_gan, "non-saturating", {}),
}
HIDDEN = (128, 128, 128)  # of the generator and of the critic
LR = 1e-3  # of both, falling linearly to a hundredth of it


def settings(seeds: int, device: str) -> dict[str, Any]:
    """All that the results depend on."""
    games = {name: {"rule": rule, **numbers} for name, (_, rule, numbers) in GAMES.items()}
    shared = {**SHARED, "hidden": list(HIDDEN), "lr": LR, "samples": SAMPLES}
    return {"seeds": seeds, "device": device, **shared, "games": games}


def run(seeds: int, device: str, folder: Path) -> dict[str, list[dict[str, float]]]:
    """For each game, and for fresh samples of the target itself, a row for each seed."""
    real = eight_gaussians(20_000, torch.Generator().manual_seed(1000))
    target = eight_gaussians(SAMPLES, torch.Generator().manual_seed(1001))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in [*GAMES, "target"]}
    adam = partial(torch.optim.Adam, lr=LR, betas=(0.5, 0.9), fused=True)
    falling = partial(LinearLR, start_factor=1.0, end_factor=0.01, total_iters=SHARED["steps"])
    for seed in range(seeds):
        for name, (train, rule, numbers) in GAMES.items():
            print(f"{name}, seed {seed}", flush=True)
            history = train(
                point_generator(hidden=HIDDEN, seed=seed),
                point_critic(hidden=HIDDEN, seed=seed + 100),
                *(real, gaussian(2), rule),
                **SHARED,
                **numbers,
                generator_optimizer=adam,
                critic_optimizer=adam,
                schedule=falling,
                samples=SAMPLES,
                target=target,
                seed=seed,
                device=device,
                checkpoint=folder / f"{name}-{seed}.pt",
            )
            results[name].append(_row(seed, history["samples"][-1], target))
            print(results[name][-1], flush=True)
        fresh = eight_gaussians(SAMPLES, torch.Generator().manual_seed(seed))
        results["target"].append(_row(seed, fresh, target))
    return results


def _row(seed: int, points: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    found, near = modes(points)
    return {"seed": seed, "w1": wasserstein(points, target), "found": found, "near": near}
