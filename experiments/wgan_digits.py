"""Three constraints and the vanilla GAN on MNIST (slides 39 and 41).

At equal generator steps: the exact W1 between generated and true digits along the training, of
the pixels and of features, which are the penultimate layer of a small classifier that is trained
once a seed. "target" has other true digits in the generator's place: the distance that two
samples of one law keep at this size (slide 33). Shrunken images may get below it (chapter 12).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.games import GAMES, Games, play
from experiments.running import Row
from lib import data
from lib.gan import gaussian, image_critic, image_generator
from lib.models import cnn
from lib.training import accuracy, erm, fit
from lib.transport import wasserstein


@dataclass(frozen=True, kw_only=True)
class Config(Games):
    """Four games on MNIST at equal generator steps, scored by exact W1 of pixels and features."""

    datasets = ("mnist",)
    steps: int = 20_000
    """Generator steps."""
    batch_size: int = 64
    """Digits in a batch."""
    channels: int = 32
    """Channels of both networks where they are widest in space; twice as many further in."""
    noise: int = 64
    """Noise variables."""
    lr: float = 5e-4
    """Adam's learning rate, falling linearly to a hundredth of it."""
    clip: float = 0.01
    """Greatest weight of the critic under clipping."""
    penalty: float = 10.0
    """Weight of the gradient penalty."""
    samples: int = 1000
    """Digits that are scored, and of the target."""
    scores: int = 10
    """Scores along the training, beside the one at its start."""
    classifier_epochs: int = 5
    """Epochs of the classifier."""
    classifier_images: int = 60_000
    """Digits that it trains on."""
    pictures: int = 8
    """Generated digits that seed 0 keeps."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Every game for every seed; ValueError for settings out of range."""
    config.check("pictures")
    for seed in range(config.seeds):
        for game in (*GAMES, "target"):
            yield game, seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one game, or take other true digits, and score them."""
    true = data.mnist("test")
    if 2 * config.samples > len(true):
        raise ValueError(f"samples must be at most half of {len(true)}, got {config.samples}")
    order = torch.randperm(len(true), generator=torch.Generator().manual_seed(1001))
    target, rest = true.a[order].split([config.samples, len(true) - config.samples])
    train = data.mnist("train")
    classifier = cnn(seed=seed)
    fit(
        classifier,
        train[: config.classifier_images],
        erm(),
        epochs=config.classifier_epochs,
        seed=seed,
        evaluate=lambda model: {},
        checkpoint=checkpoint.with_name(f"classifier-{seed}.pt"),
        device=device,
        progress=False,
    )
    # 100 features; their W1 is in the units of this classifier.
    features = partial(_features, classifier[:-1], device)
    if variant == "target":
        chosen = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        samples = [rest[chosen[: config.samples]]]
        pixels, steps = [wasserstein(samples[0].flatten(1), target.flatten(1))], [0]
    else:
        history = play(
            config,
            variant,
            image_generator(config.noise, config.channels, seed=seed),
            image_critic(config.channels, seed=seed + 100),
            train.a,
            gaussian(config.noise),
            evaluate_every=max(1, config.steps // config.scores),
            target=target,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
        )
        samples, pixels, steps = (history[name] for name in ("samples", "w1", "step"))
    of_target = features(target)
    of_samples = [wasserstein(features(images), of_target) for images in samples]
    row = {
        "w1_pixels": pixels[-1],
        "w1_features": of_samples[-1],
        "classifier_accuracy": accuracy(classifier, true.to(device)),
        "steps": steps,
        "w1_pixels_by_step": pixels,
        "w1_features_by_step": of_samples,
    }
    if seed == 0 and config.pictures:
        shown = samples[-1][: config.pictures, 0].double()
        row["pictures"] = shown.round(decimals=3).tolist()
    return row


@torch.no_grad()
def _features(layers: nn.Module, device: torch.device, images: Tensor) -> Tensor:
    return torch.cat([layers(part.to(device)).cpu() for part in images.split(1000)])
