"""How near robust_accuracy comes to AutoAttack on CIFAR-10 (slides 10 and 25).

The adversarially trained networks of training-cifar10 are trained again, and judged on the first
test images three times: by ``robust_accuracy`` with its defaults, with 40 steps, and by AutoAttack
(Croce and Hein, 2020; standard: four attacks, one with nine targets) of the package torchattacks.
Measured: the three robust accuracies, and the CPU seconds that each took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from experiments import cifar10, training_cifar10
from experiments.kept import RunError
from experiments.running import Row
from lib.attacks import robust_accuracy
from lib.balls import LInf
from lib.data import Images
from lib.training import accuracy


@dataclass(frozen=True, kw_only=True)
class Config(training_cifar10.Config):
    """robust_accuracy beside AutoAttack on adversarially trained networks."""

    judged: int = 200
    """Test images that the attacks are compared on, the first so many."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """The adversarially trained networks of training-cifar10; RunError without torchattacks."""
    try:
        import torchattacks  # noqa: F401
    except ImportError as error:
        raise RunError(
            "AutoAttack is torchattacks': pip install --no-deps torchattacks==3.5.1"
        ) from error
    if config.judged > config.tests:
        raise ValueError(f"judged must be at most tests, {config.tests}, got {config.judged}")
    for variant, seed in training_cifar10.cells(config):
        if variant.endswith("adversarial"):
            yield variant, seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one network; its robust accuracy by each attack, and the CPU seconds."""
    import torchattacks

    train, test = cifar10.load(config, device)
    model, _ = training_cifar10.trained(config, variant, seed, train, test, checkpoint)
    model, test = model.eval(), test[: config.judged]
    peer = torchattacks.AutoAttack(model, norm="Linf", eps=config.eps, n_classes=10, seed=seed)

    def survive() -> float:
        return accuracy(model, Images(peer(test.a, test.b).detach(), test.b, test.classes))

    row: Row = {"clean": accuracy(model, test)}
    judge = partial(robust_accuracy, model, test.a, test.b, LInf(config.eps))
    ways = {"default": judge, "thorough": partial(judge, steps=40), "autoattack": survive}
    for name, way in ways.items():
        begin = time.process_time()
        row[name] = way()
        row[f"{name}_seconds"] = time.process_time() - begin
    return row
