"""FGSM, PGA and PGA-ℓ∞ on four networks that were trained on MNIST (slides 9 to 15).

Every attack starts at η = 0 and is scored at each of its iterates, on the test digits: accuracy
and mean loss after k steps, with and without the image box. "ahead" is the share of the digits
on which the last iterate's loss is no less than FGSM's; "robust" that of the digits which no
point of any of the attacks misclassifies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.running import Row, Settings
from lib import data
from lib.attacks import cross_entropy, fgsm, pga, step_sizes
from lib.balls import LInf
from lib.data import Images
from lib.models import cnn, linear, mlp, predict
from lib.training import erm, fit

NETWORKS = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "mlp-celu": partial(mlp, hidden=(200, 200), activation="celu"),  # deeper, and smooth
}


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """FGSM, PGA and PGA-linf against steps, on four networks trained on MNIST."""

    datasets = ("mnist",)
    radii: tuple[float, ...] = (0.1, 0.3)
    """Radii of the l-infinity ball, in pixel units."""
    steps: int = 10
    """Steps of PGA and of PGA-linf."""
    alphas: tuple[float, ...] = (0.3, 1e4)
    """Step sizes of PGA, which multiply the raw gradient."""
    linf_step: float = 0.25
    """Step of PGA-linf, as a share of the radius."""
    epochs: int = 5
    """Epochs of training, without attacks."""
    batch_size: int = 100
    """Digits in a minibatch of the training."""
    lr: float = 1e-3
    """Adam's learning rate."""
    train_images: int = 60_000
    """Digits to train on."""
    images: int = 10_000
    """Test digits to attack."""
    attack_batch: int = 250
    """Digits attacked at a time; more of them keep a GPU busy."""


def variants(config: Config) -> dict[str, tuple[str, float, bool]]:
    """Network, radius and whether there is a box, by name; ValueError for settings out of range."""
    config.check()
    for alpha in (*config.alphas, config.linf_step):
        step_sizes(alpha, config.steps)
    return {
        f"{network}-{LInf(radius).eps:g}-{'box' if box else 'free'}": (network, radius, box)
        for network in NETWORKS
        for radius in config.radii
        for box in (True, False)
    }


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Every network, radius and box for every seed."""
    names = variants(config)
    for seed in range(config.seeds):
        for name in names:
            yield name, seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train the network, once for all radii, and attack it."""
    network, radius, box = variants(config)[variant]
    model = NETWORKS[network](seed=seed)
    fit(
        model,
        data.mnist("train")[: config.train_images],
        erm(),
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        evaluate=lambda model: {},
        checkpoint=checkpoint.with_name(f"{network}-{seed}.pt"),
        device=device,
        progress=False,
    )
    test, ball = data.mnist("test")[: config.images].to(device), LInf(radius)
    seen = partial(watch, model, test, box=box, batch_size=config.attack_batch)
    losses, right = seen(partial(fgsm, ball=ball))
    row = {"clean_accuracy": _mean(right[0]), "clean_loss": _mean(losses[0])}
    row |= {"fgsm_accuracy": _mean(right[1]), "fgsm_loss": _mean(losses[1])}
    once, robust = losses[1], right.all(0)
    methods = {f"pga_{alpha:g}": (alpha, False) for alpha in config.alphas}
    methods["pga_linf"] = (config.linf_step * radius, True)
    for name, (alpha, steepest) in methods.items():
        ascent = partial(pga, ball=ball, step_size=alpha, steps=config.steps, steepest=steepest)
        losses, right = seen(ascent)
        robust &= right.all(0)
        row[f"{name}_accuracy"], row[f"{name}_loss"] = _mean(right[-1]), _mean(losses[-1])
        row[f"{name}_ahead"] = _mean(losses[-1] >= once - 1e-6)
        row[f"{name}_accuracies"] = [_mean(step) for step in right]
        row[f"{name}_losses"] = [_mean(step) for step in losses]
    return row | {"robust_accuracy": _mean(robust)}


def watch(
    model: nn.Module, images: Images, ascent: Callable[..., Tensor], *, box: bool, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Loss, and whether the prediction is right, at η = 0 and after each step: [steps + 1, n]."""
    parts = []
    for a, b in zip(images.a.split(batch_size), images.b.split(batch_size), strict=True):
        seen = []

        def f(eta: Tensor, a: Tensor = a, b: Tensor = b, seen: list = seen) -> Tensor:
            logits = model(a + eta)
            losses = cross_entropy(logits, b)
            seen.append((losses.detach(), predict(logits) == b))
            return losses

        last = ascent(f, torch.zeros_like(a), low=-a if box else None, high=1 - a if box else None)
        with torch.no_grad():
            f(last)
        parts.append([torch.stack(of) for of in zip(*seen, strict=True)])
    losses, right = zip(*parts, strict=True)
    return torch.cat(losses, 1), torch.cat(right, 1)


def _mean(values: Tensor) -> float:
    return round(values.double().mean().item(), 6)
