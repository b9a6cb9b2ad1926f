"""Class-focused training against PGD training on CIFAR-10 (slide 26).

Both train a ResNet-18, or with ``--size small`` a small network, on attacked images. One sees every
image once an epoch; the other draws classes by Exp3, more often those that it gets wrong. Measured
as in training-cifar10. Pethick et al. (2023) report that the robust accuracy of the worst class
rises from 23 to 32 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch

from experiments import cifar10
from experiments.running import Row
from lib.attacks import attack, cross_entropy
from lib.fairness import ClassFocusedSampler
from lib.training import accuracy, adversarial


@dataclass(frozen=True, kw_only=True)
class Config(cifar10.Attacked):
    """Class-focused training against PGD training on CIFAR-10."""

    sizes: ClassVar = {
        "small": {
            "size": "small",
            "network": "cnn",
            "lr": 0.03,  # at 0.1 it falls back to chance with some seeds
            "epochs": 15,
            "steps": 3,
            "rise": 0.3,
            "seeds": 3,
            "class_step": 6e-5,
        }
    }

    gamma: float = 0.5
    """The share of uniform draws of classes, in [0, 1]."""
    class_step: float = 3e-5
    """Step size of the class weights; that of the published code, 5e-6 for 200 epochs, in
    proportion."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both trainings for every seed."""
    config.check("padding")
    ClassFocusedSampler(torch.arange(10), config.gamma, config.class_step)  # or ValueError
    for seed in range(config.seeds):
        yield "adversarial", seed
        yield "class-focused", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network and judge it; "drawn" is the distribution on the classes at the end."""
    search = partial(attack, steps=config.steps)
    train, test = cifar10.load(config, device)
    sampler, loss = None, cross_entropy
    if variant == "class-focused":
        draws = torch.Generator().manual_seed(seed + 3000)
        sampler = ClassFocusedSampler(train.b, config.gamma, config.class_step, draws)
        loss = sampler.watch(cross_entropy)
    update = config.rising(lambda ball: adversarial(partial(search, ball=ball), loss=loss))
    model = cifar10.network(config, seed)
    history = cifar10.train(
        config,
        model,
        train,
        update,
        seed=seed,
        checkpoint=checkpoint,
        sampler=sampler,
        evaluate=lambda model: {"clean": accuracy(model, test, batch_size=config.test_batch)},
    )
    row = cifar10.judged(config, model, test)
    row |= {"epoch_loss": history["loss"], "epoch_clean": history["clean"]}
    return row | ({"drawn": sampler.p.tolist()} if sampler else {})
