"""Who pays for the average: training with and without attacks on CIFAR-10 (slide 25).

A ResNet-18 is trained on clean images, and by PGD-10 training at 8/255; with ``--size small``
a small network by PGD-3 training, and one ResNet-8. Measured on the test
images: the accuracy on clean ones and under 20 steps of PGA-ℓ∞, on average, of the worst class
and of each class. The slide reports 51 % on average and 23.5 % of the worst class under attack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from experiments import cifar10
from experiments.running import Row
from lib.attacks import attack
from lib.data import Images
from lib.training import accuracy, adversarial, erm


@dataclass(frozen=True, kw_only=True)
class Config(cifar10.Attacked):
    """Clean and PGD training on CIFAR-10, judged class by class."""

    sizes: ClassVar = {
        "small": {
            "size": "small",
            "network": "cnn",
            "lr": 0.03,  # at 0.1 it falls back to chance with some seeds
            "epochs": 15,
            "steps": 3,
            "rise": 0.3,
            "seeds": 3,
            "second": "resnet8",
        }
    }
    second: Literal["resnet8", "cnn"] | None = None
    """Another network, trained likewise after the first one."""
    second_epochs: int = 8
    """Its epochs."""
    second_seeds: int = 1
    """Its seeds; 0: it is left out."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both trainings for every seed; then both of the second network."""
    config.check("padding", "second_seeds")
    for seed in range(config.seeds):
        yield "standard", seed
        yield "adversarial", seed
    for seed in range(config.second_seeds if config.second else 0):
        yield f"{config.second}-standard", seed
        yield f"{config.second}-adversarial", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network and judge it; the lists are of epochs and of classes."""
    train, test = cifar10.load(config, device)
    model, history = trained(config, variant, seed, train, test, checkpoint)
    epochs = {"epoch_loss": history["loss"], "epoch_clean": history["clean"]}
    return cifar10.judged(config, model, test) | epochs


def trained(
    config: Config, variant: str, seed: int, train: Images, test: Images, checkpoint: Path
) -> tuple[nn.Module, dict[str, list[float]]]:
    """The network of a cell, and what fit returns; the accuracy on test after each epoch."""
    network, _, training = variant.rpartition("-")
    if network:
        config = replace(config, network=network, epochs=config.second_epochs)
    search = partial(attack, steps=config.steps)
    if training == "standard":
        update = erm()
    else:
        update = config.rising(lambda ball: adversarial(partial(search, ball=ball)))
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
    return model, history
