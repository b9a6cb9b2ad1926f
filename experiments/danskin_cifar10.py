"""One maximizer against k: PGD training and DDi on CIFAR-10 (slide 22, right).

Two networks: with CELU and group norm, for which the loss is smooth in the parameters, as Danskin's
theorem asks, and with ReLU and batch norm, for which it is not; with ``--size small`` a small
network without normalization layers. Each is trained along the gradient at one attack ("pgd"),
and along the shortest vector g in the hull of the gradients at k attacks ("ddi"); the smooth one
also along g / ‖g‖, as the published code does ("ddi-unit"). All draw their starts alike.

Measured: the robust accuracy after each epoch; and of the k gradients of each step the cosine of
every two, and whether the first one alone, turned around, lowers all k losses. Where it does, and
where all cosines are near 1, DDi can hardly differ from a single maximizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from experiments import cifar10
from experiments.rising import Clock
from experiments.running import Row
from lib.training import Update, accuracy, danskin

NETWORKS = {
    "celu": {"activation": "celu", "norm": "group"},
    "relu": {"activation": "relu", "norm": "batch"},
}
WAYS = {"celu": ("pgd", "ddi", "ddi-unit"), "relu": ("pgd", "ddi")}


@dataclass(frozen=True, kw_only=True)
class Config(cifar10.Attacked):
    """PGD training against DDi with k attacks, on a smooth network and on the usual one."""

    sizes: ClassVar = {
        "small": {
            "size": "small",
            "network": "cnn",
            "images": 10_000,
            "epochs": 10,
            "steps": 3,
            "rise": 0.3,
            "k": 5,
            "watched": 1000,
            "seeds": 3,
        }
    }
    lr: float = 0.05
    """SGD's learning rate: the greatest of the cycle, or the first one."""
    steps: int = 7
    """Steps of the attack in training."""
    k: int = 10
    """Attacks of each minibatch in DDi."""
    watched: int = 2000
    """Test images whose robust accuracy is measured after each epoch, the first so many."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both networks, each trained each way, for every seed."""
    config.check("padding")
    for seed in range(config.seeds):
        for name, ways in WAYS.items():
            for way in ways:
                yield f"{name}-{way}", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network one way; the lists are of epochs."""
    name, _, way = variant.partition("-")
    angles = Angles()
    update = hull(config, way, seed, angles)
    train, test = cifar10.load(config, device)
    watched = test[: config.watched]

    def evaluate(model: nn.Module) -> dict[str, float]:
        clean = accuracy(model, test, batch_size=config.test_batch)
        return {"clean": clean, "robust": cifar10.robust(config, model, watched)} | angles.taken()

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
    if "cosine" in history:
        row["cosine"] = sum(history["cosine"]) / config.epochs
        row["least_cosine"] = min(history["least_cosine"])
        row["not_descending"] = sum(history["not_descending"]) / config.epochs
    return row | {f"epoch_{name}": values for name, values in history.items()}


def hull(config: Config, way: str, seed: int, angles: Angles) -> Update:
    """The update of a way: of k gradients or one, at its own length or at 1.

    The decay is a term of the loss, and so of each of the k gradients.
    """
    update = config.rising(
        partial(
            danskin,
            k=1 if way == "pgd" else config.k,
            steps=config.steps,
            weight_decay=config.weight_decay,
            generator=torch.Generator().manual_seed(seed + 2000),
            watch=angles.see,
        ),
        angles,
    )

    def of_length_1(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        loss = update(model, a, b)
        gradients = [p.grad for p in model.parameters()]
        length = get_total_norm(gradients)
        for gradient in gradients:
            gradient.div_(length.clamp(min=torch.finfo(length.dtype).tiny))
        return loss

    if way != "ddi-unit":
        return update
    return replace(update, gradient=of_length_1, settings={**update.settings, "length": 1})


class Angles(Clock):
    """What the k gradients of the steps were like: of each the mean and the least cosine of two,
    and the least inner product of the first one with another, in units of their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []

    def see(self, g: Tensor) -> None:
        if len(g) > 1:
            unit = torch.nn.functional.normalize(g.double())
            products = unit @ unit.T
            pairs = products[torch.ones_like(products).triu(1) == 1]
            self.seen.append([float(pairs.mean()), float(pairs.min()), float(products[0].min())])

    def taken(self) -> dict[str, float]:
        """Of the steps since the last call: mean and least cosine, share without descent."""
        if not self.seen:
            return {}
        mean, least, first = torch.tensor(self.seen, dtype=torch.float64).T
        self.seen = []
        share = (first <= 0).double().mean()
        found = {"cosine": mean.mean(), "least_cosine": least.min(), "not_descending": share}
        return {name: float(value) for name, value in found.items()}
