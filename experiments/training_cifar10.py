"""Who pays for the average: training with and without attacks on CIFAR-10 (slide 25).

A ResNet-18 is trained on clean images, and by PGD-10 training at 8/255. Measured on the test
images: the accuracy on clean ones and under 20 steps of PGA-ℓ∞, on average, of the worst class
and of each class. The slide reports 51 % on average and 23.5 % of the worst class under attack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from experiments import cifar10
from experiments.running import Row
from lib.attacks import attack
from lib.balls import LInf
from lib.training import accuracy, adversarial, erm


@dataclass(frozen=True, kw_only=True)
class Config(cifar10.Attacked):
    """Clean and PGD training of ResNet-18 on CIFAR-10, judged class by class."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both trainings for every seed."""
    config.check("padding")
    for seed in range(config.seeds):
        yield "standard", seed
        yield "adversarial", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network and judge it; the lists are of epochs and of classes."""
    search = partial(attack, ball=LInf(config.eps), steps=config.steps)
    update = erm() if variant == "standard" else adversarial(search)
    train, test = cifar10.load(config, device)
    model = cifar10.network(config, seed)
    history = cifar10.train(
        config,
        model,
        train,
        update,
        seed=seed,
        checkpoint=checkpoint,
        evaluate=lambda model: {"clean": accuracy(model, test, batch_size=config.test_batch)},
    )
    epochs = {"epoch_loss": history["loss"], "epoch_clean": history["clean"]}
    return cifar10.judged(config, model, test) | epochs
