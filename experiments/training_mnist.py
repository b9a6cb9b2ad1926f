"""ERM and PGD training on MNIST, and what is left of their accuracy at ε = 0.3 (slides 16 and 23).

"clean_accuracy" and "robust_accuracy" are of the test digits; the latter is the share that no
point of PGD-40 with 10 restarts misclassifies. "by_radius" is the same for other radii, with fewer
restarts: robust accuracy against ε as in chapter 5. PGD training that begins at ε = 0.3 can stay at
chance for good; so the radius rises from 0, with every minibatch of the first epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from experiments.running import Row, Settings
from lib import data
from lib.attacks import loss_of, pga, robust_accuracy
from lib.balls import Ball, LInf
from lib.models import cnn
from lib.runs import processes
from lib.training import accuracy, adversarial, erm, fit

UPDATES = ("erm", "pgd")


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """ERM and PGD training of a small CNN on MNIST, attacked by PGD-40 with 10 restarts."""

    datasets = ("mnist",)
    eps: float = 0.3
    """Radius of the l-infinity ball, in training and in the attack."""
    epochs: int = 15
    """Epochs of either training."""
    rise: float = 0.2
    """Share of the minibatches over which the radius and the learning rate rise."""
    batch_size: int = 100
    """Digits in a minibatch."""
    lr: float = 3e-3
    """The largest learning rate of Adam, which then falls along a cosine (Smith's one cycle)."""
    steps: int = 7
    """Steps of PGD in training."""
    step_size: float = 0.25
    """Each of them, as a share of the radius."""
    attack_steps: int = 40
    """Steps of the attack that scores, of the lengths that lib.attacks.attack chooses."""
    restarts: int = 10
    """Its restarts: one from the clean digit, the others from random points."""
    radii: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    """Radii of the curve."""
    curve_restarts: int = 1
    """Restarts of the attacks on the curve."""
    train_images: int = 60_000
    """Digits to train on."""
    images: int = 10_000
    """Test digits."""
    attack_batch: int = 250
    """Digits attacked at a time; more of them keep a GPU busy."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both trainings for every seed; ValueError for settings out of range."""
    config.check()
    if not 0 < config.rise < 1:
        raise ValueError(f"rise must be between 0 and 1, got {config.rise}")
    steps = config.epochs * ceil(config.train_images / config.batch_size)
    if config.rise * steps < 2:
        raise ValueError(f"rise must be 2 minibatches or more of {steps}, got {config.rise}")
    for radius in (config.eps, *config.radii):
        LInf(radius)
    for seed in range(config.seeds):
        for update in UPDATES:
            yield update, seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network, with ERM or with PGD, and attack it."""
    model = cnn(mean=0.0, std=1.0, seed=seed)  # of pixels as they are
    train = data.mnist("train")[: config.train_images]
    steps = config.epochs * ceil(len(train) / config.batch_size)
    history = fit(
        model,
        train,
        erm() if variant == "erm" else PGDTraining(config, ceil(config.rise * steps), seed),
        epochs=config.epochs,
        batch_size=config.batch_size,
        schedule=partial(
            OneCycleLR,
            max_lr=config.lr,
            total_steps=steps,
            pct_start=config.rise,
            cycle_momentum=False,
        ),
        schedule_each="minibatch",
        seed=seed,
        evaluate=lambda model: {},
        checkpoint=checkpoint,
        device=device,
        progress=False,
    )
    test = data.mnist("test")[: config.images].to(device)
    attacked = partial(
        robust_accuracy,
        model,
        test.a,
        test.b,
        batch_size=config.attack_batch,
        steps=config.attack_steps,
    )
    return {
        "clean_accuracy": accuracy(model, test),
        "robust_accuracy": attacked(LInf(config.eps), restarts=config.restarts),
        "by_radius": [attacked(LInf(r), restarts=config.curve_restarts) for r in config.radii],
        "losses": history["loss"],
    }


class PGDTraining:
    """Adversarial training by PGD, at a radius that rises to eps over the first steps.

    Step t has the radius ``eps min(1, t / rising)``; starts are drawn from the seed.
    """

    def __init__(self, config: Config, rising: int, seed: int) -> None:
        self.config, self.rising, self.t = config, rising, 0
        self.generators = (torch.Generator().manual_seed(seed),)
        of_attack = {name: getattr(config, name) for name in ("eps", "steps", "step_size")}
        self.settings = {"name": "PGDTraining", **of_attack, "rising": rising}

    def __call__(self, model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        self.t += 1
        radius = self.config.eps * min(1.0, self.t / self.rising)
        attack = partial(
            pgd,
            ball=LInf(radius),
            step_size=self.config.step_size * radius,
            steps=self.config.steps,
            generator=self.generators[0],
        )
        return adversarial(attack)(model, a, b)

    def state_dict(self) -> dict[str, int]:
        return {"t": self.t}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.t = state["t"]


def pgd(
    model: nn.Module,
    a: Tensor,
    b: Tensor,
    *,
    ball: Ball,
    step_size: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """The last iterate of PGA-ℓ∞ from a random point of ball and box (Madry et al., 2018)."""
    low, high = -a, 1 - a
    start = processes.draw_local_rows(ball.sample, tuple(a.shape), generator).to(a)
    start = ball.project(start, low, high)
    f = loss_of(model, a, b)
    return (a + pga(f, start, ball, step_size, steps, low, high, steepest=True)).clamp(0, 1)
