"""One maximizer against k: PGD training and DDi on CIFAR-10 (slide 22, right).

Two ResNet-18: CELU with group norm, for which the loss is smooth in the parameters, as Danskin's
theorem asks, and ReLU with batch norm, for which it is not. Each is trained along the gradient at
one attack, and along the shortest vector in the hull of the gradients at k attacks (DDi). Both
draw their starts alike. Measured: the robust accuracy after each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments import cifar10
from experiments.running import Row
from lib.balls import LInf
from lib.training import accuracy, danskin

NETWORKS = {
    "celu-group": {"activation": "celu", "norm": "group"},
    "relu-batch": {"activation": "relu", "norm": "batch"},
}


@dataclass(frozen=True, kw_only=True)
class Config(cifar10.Attacked):
    """PGD training against DDi with k attacks, on a smooth ResNet-18 and on the usual one."""

    lr: float = 0.05
    """SGD's learning rate: the greatest of the cycle, or the first one."""
    steps: int = 7
    """Steps of the attack in training."""
    k: int = 10
    """Attacks of each minibatch in DDi."""
    watched: int = 2000
    """Test images whose robust accuracy is measured after each epoch, the first so many."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both networks, each trained both ways, for every seed."""
    config.check("padding")
    for seed in range(config.seeds):
        for name in NETWORKS:
            yield f"{name}-pgd", seed
            yield f"{name}-ddi", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network one way; the lists are of epochs."""
    name, _, way = variant.rpartition("-")
    # The decay is a term of the loss, and so of each of the k gradients.
    update = danskin(
        LInf(config.eps),
        k=config.k if way == "ddi" else 1,
        steps=config.steps,
        weight_decay=config.weight_decay,
        generator=torch.Generator().manual_seed(seed + 2000),
    )
    train, test = cifar10.load(config, device)
    watched = test[: config.watched]

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        clean = accuracy(model, test, batch_size=config.test_batch)
        return {"clean": clean, "robust": cifar10.robust(config, model, watched)}

    model = cifar10.network(config, seed, **NETWORKS[name])
    history = cifar10.train(
        config,
        model,
        train,
        update,
        seed=seed,
        checkpoint=checkpoint,
        weight_decay=0.0,
        evaluate=evaluate,
    )
    row = {"clean": history["clean"][-1], "robust": cifar10.robust(config, model, test)}
    return row | {f"epoch_{name}": history[name] for name in ("loss", "clean", "robust")}
