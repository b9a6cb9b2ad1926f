"""Flat minima and the test error: SGD against SAM on CIFAR-10 (slides 43 and 44).

A ResNet-18 is trained with the gradient at x, and with the gradient at SAM's perturbed
parameters; each step of SAM takes two gradients. Measured: the error on the test images, and the
largest eigenvalue of the Hessian of the mean loss on images of the training, without augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from experiments import cifar10
from experiments.running import Row
from lib.sharpness import largest_eigenvalue
from lib.training import accuracy, erm, sharpness_aware


@dataclass(frozen=True, kw_only=True)
class Config(cifar10.Cifar10):
    """SGD against SAM for ResNet-18 on CIFAR-10: test error, and curvature at the end."""

    epochs: int = 200
    """Epochs of training."""
    rho: float = 0.05
    """Radius of SAM's ball, in the space of all parameters."""
    hessian_images: int = 2000
    """Images of the training in whose mean loss the curvature is measured, the first so many."""
    hessian_batch: int = 500
    """Of these at a time; fewer need less memory."""
    iterations: int = 200
    """Products with the Hessian, at most."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both methods for every seed."""
    config.check("padding")
    for seed in range(config.seeds):
        yield "sgd", seed
        yield "sam", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network; its errors, and its largest eigenvalue with the residual."""
    update = erm() if variant == "sgd" else sharpness_aware(config.rho)
    train, test = cifar10.load(config, device)

    def error(model: nn.Module) -> dict[str, float]:
        return {"error": 1 - accuracy(model, test, batch_size=config.test_batch)}

    model = cifar10.network(config, seed)
    settings = {"seed": seed, "checkpoint": checkpoint, "evaluate": error}
    history = cifar10.train(config, model, train, update, **settings)
    curved = train[: config.hessian_images]
    limits = {"iterations": config.iterations, "batch_size": config.hessian_batch}
    top = largest_eigenvalue(model, curved, **limits)
    return {
        "test_error": history["error"][-1],
        "train_error": 1 - accuracy(model, train, batch_size=config.test_batch),
        "eigenvalue": top.value,
        "eigenvalue_residual": top.residual,
        "epoch_loss": history["loss"],
        "epoch_error": history["error"],
    }
