"""Flat minima and the test error: SGD against SAM on CIFAR-10 (slides 43 and 44).

A ResNet-18, or with ``--size small`` a small network, is trained with the gradient at x ("sgd") and
with the gradient at SAM's perturbed parameters ("sam"). Each step of SAM takes two gradients, and
"sgd-long" spends as many with twice the epochs. "sgd-noise" and "sam-noise" train on labels a share
of which was replaced by another class. Measured: the error on the test images; the largest
eigenvalue of the Hessian of the mean loss on images of the training, without augmentation; and for
seed 0 that loss on a plane through the trained x, as in the slide's pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from experiments import cifar10
from experiments.running import Row
from lib.attacks import cross_entropy
from lib.data import Images
from lib.sharpness import largest_eigenvalue
from lib.training import accuracy, erm, sharpness_aware


@dataclass(frozen=True, kw_only=True)
class Config(cifar10.Cifar10):
    """SGD against SAM on CIFAR-10: test error, curvature and the loss around the end."""

    sizes: ClassVar = {
        "small": {
            "size": "small",
            "network": "cnn",
            "lr": 0.03,  # at 0.1 it falls back to chance with some seeds
            "epochs": 30,
            "seeds": 3,
            "hessian_images": 1000,
            "hessian_batch": 1000,
        }
    }
    epochs: int = 200
    """Epochs of training; twice as many for sgd-long."""
    rho: float = 0.05
    """Radius of SAM's ball, in the space of all parameters."""
    noise: float = 0.2
    """Share of wrong labels in sgd-noise and sam-noise."""
    hessian_images: int = 2000
    """Images of the training in whose mean loss the curvature is measured, the first so many."""
    hessian_batch: int = 500
    """Of these at a time; fewer need less memory."""
    iterations: int = 200
    """Products with the Hessian, at most."""
    surface: int = 25
    """Points a side of the grid on which seed 0 keeps the loss of the same images; 0: none."""
    extent: float = 1.0
    """Half the side of the grid, in lengths of the filters."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Every method for every seed; ValueError for settings out of range."""
    config.check("padding", "surface")
    if not config.noise <= 1:
        raise ValueError(f"noise must be at most 1, got {config.noise}")
    if config.surface == 1:
        raise ValueError("surface must be 0 or >= 2, got 1")
    for seed in range(config.seeds):
        for variant in ("sgd", "sam", "sgd-long", "sgd-noise", "sam-noise"):
            yield variant, seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network; its errors, and its largest eigenvalue with the residual."""
    method, _, more = variant.partition("-")
    update = erm() if method == "sgd" else sharpness_aware(config.rho)
    train, test = cifar10.load(config, device)
    seen = wrong(train, config.noise, seed) if more == "noise" else train
    if more == "long":
        config = replace(config, epochs=2 * config.epochs)

    def error(model: nn.Module) -> dict[str, float]:
        return {"error": 1 - accuracy(model, test, batch_size=config.test_batch)}

    model = cifar10.network(config, seed)
    settings = {"seed": seed, "checkpoint": checkpoint, "evaluate": error}
    history = cifar10.train(config, model, seen, update, **settings)
    curved = seen[: config.hessian_images]
    limits = {"iterations": config.iterations, "batch_size": config.hessian_batch}
    top = largest_eigenvalue(model, curved, **limits)
    row = {
        "test_error": history["error"][-1],
        "train_error": 1 - accuracy(model, train, batch_size=config.test_batch),
        "eigenvalue": top.value,
        "eigenvalue_residual": top.residual,
        "epoch_loss": history["loss"],
        "epoch_error": history["error"],
    }
    if seed == 0 and config.surface:
        row["surface"] = surface(model, curved, config.surface, config.extent, config.test_batch)
    return row


def wrong(images: Images, share: float, seed: int) -> Images:
    """The images, of which this share, drawn from the seed, has the label of another class."""
    draws = torch.Generator().manual_seed(seed + 4000)
    n, classes = len(images), len(images.classes)
    which = torch.randperm(n, generator=draws)[: round(share * n)]
    by = torch.randint(1, classes, (len(which),), generator=draws)
    b = images.b.clone()
    b[which] = (b[which] + by.to(b)) % classes
    return Images(images.a, b, images.classes)


@torch.no_grad()
def surface(
    model: nn.Module, images: Images, points: int, extent: float, batch_size: int
) -> list[list[float]]:
    """The mean loss at ``x + s u + t v``: a row for each t, s and t from -extent to extent.

    u and v are drawn normal and scaled to the length of x filter by filter, and 0 for biases and
    normalization layers (Li et al., 2018), so that networks of different scale can be compared.
    """
    draws, x = torch.Generator().manual_seed(0), [p.clone() for p in model.parameters()]
    u, v = ([_like(p, draws) for p in x] for _ in range(2))
    grid, rows = torch.linspace(-extent, extent, points).tolist(), []
    for t in grid:
        rows.append([])
        for s in grid:
            for p, *parts in zip(model.parameters(), x, u, v, strict=True):
                p.copy_(parts[0] + s * parts[1] + t * parts[2])
            losses = [
                cross_entropy(model(a), b)
                for a, b in zip(images.a.split(batch_size), images.b.split(batch_size), strict=True)
            ]
            rows[-1].append(round(torch.cat(losses).double().mean().item(), 4))
    for p, before in zip(model.parameters(), x, strict=True):
        p.copy_(before)
    return rows


def _like(p: Tensor, draws: torch.Generator) -> Tensor:
    """A direction for one parameter, each of its filters as long as that of p."""
    if p.dim() < 2:
        return torch.zeros_like(p)
    d, over = torch.randn(p.shape, generator=draws).to(p), tuple(range(1, p.dim()))
    lengths = [torch.linalg.vector_norm(t, dim=over, keepdim=True) for t in (p, d)]
    return d * lengths[0] / lengths[1]
