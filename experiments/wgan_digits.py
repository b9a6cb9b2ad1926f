"""Three constraints and the vanilla GAN on MNIST (slides 39 and 41).

At equal generator steps: the exact W1 between generated and true digits along the training, of
the pixels and of features, which are the penultimate layer of a classifier that is trained once a
seed; and how many digits can be read: "sure" is the share that the classifier gives a probability
of 0.9 or more to be one digit, "least_digit" that of the digit which is generated least.
"vanilla-spectral" is the vanilla GAN whose discriminator has each layer divided by its spectral
norm (Miyato et al., 2018). "target" has other true digits in the generator's place: the distance
that two samples of one law keep at this size (slide 33). Shrunken images may get below it
(chapter 12). Seed 0 keeps pictures: a grid, ways from one ω to another, and digits along training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.lr_scheduler import OneCycleLR

from experiments.games import GAMES, Games, play
from experiments.legible import Averaged, generator, legibility, mosaic
from experiments.running import Row
from lib import data
from lib.data import Images
from lib.gan import gaussian, image_critic, image_generator
from lib.models import cnn, weights_from
from lib.runs import records
from lib.training import accuracy, erm, fit
from lib.transport import wasserstein


@dataclass(frozen=True, kw_only=True)
class Config(Games):
    """Four games on MNIST at equal generator steps, scored by exact W1 of pixels and features."""

    datasets = ("mnist",)
    sizes: ClassVar = {"small": {"size": "small", "steps": 2500, "seeds": 3}}
    size: Literal["full", "small"] = "full"
    """The defaults of the other settings: full for a GPU, or small for a CPU core."""
    steps: int = 20_000
    """Generator steps."""
    batch_size: int = 64
    """Digits in a batch."""
    critic_steps: int = 2
    """Critic steps before each generator step."""
    channels: int = 32
    """Channels of both networks where they are widest in space; twice as many further in."""
    noise: int = 64
    """Noise variables."""
    lr: float = 5e-4
    """Adam's learning rate."""
    falling: float = 0.5
    """Share of the steps, the last ones, over which it falls linearly to a hundredth of it."""
    batch_norm: bool = True
    """Batch normalization in the generator."""
    average: float = 0.999
    """Decay of the mean of the generator's weights, which the scored digits are made with."""
    clip: float = 0.01
    """Greatest weight of the critic under clipping."""
    penalty: float = 10.0
    """Weight of the gradient penalty."""
    samples: int = 1000
    """Digits that are scored, and of the target."""
    scores: int = 10
    """Scores along the training, beside the one at its start."""
    classifier_epochs: int = 10
    """Epochs of the classifier."""
    sure: float = 0.9
    """Probability of one digit from which on the classifier is sure of it."""
    classifier_images: int = 60_000
    """Digits that it trains on."""
    pictures: int = 10
    """Digits that seed 0 keeps, and as many a side of the grid; 0: none."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Every game for every seed; ValueError for settings out of range."""
    config.check("pictures")
    for name in ("falling", "sure"):
        if not getattr(config, name) <= 1:
            raise ValueError(f"{name} must be at most 1, got {getattr(config, name)}")
    if config.pictures**2 > config.samples:
        raise ValueError(f"pictures must be at most √{config.samples}, got {config.pictures}")
    Averaged(nn.Identity(), config.average)  # or ValueError
    for seed in range(config.seeds):
        for game in (*GAMES, "vanilla-spectral", "target"):
            yield game, seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """Train one game, or take other true digits, and score them."""
    true = data.mnist("test")
    if 2 * config.samples > len(true):
        raise ValueError(f"samples must be at most half of {len(true)}, got {config.samples}")
    order = torch.randperm(len(true), generator=torch.Generator().manual_seed(1001))
    target, rest = true.a[order].split([config.samples, len(true) - config.samples])
    train = data.mnist("train")
    classifier = _classifier(config, train, seed, device, checkpoint)
    # 100 features; their W1 is in the units of this classifier.
    features, logits = (
        partial(_output, layers, device) for layers in (classifier[:-1], classifier)
    )
    if variant == "target":
        chosen = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        samples = [rest[chosen[: config.samples]]]
        pixels, steps = [wasserstein(samples[0].flatten(1), target.flatten(1))], [0]
    else:
        make = generator if config.batch_norm else image_generator
        network = Averaged(make(config.noise, config.channels, seed=seed), config.average)
        critic = image_critic(config.channels, seed=seed + 100)
        if variant == "vanilla-spectral":
            with weights_from(seed):  # it draws where its power iterations begin
                for layer in critic:
                    if hasattr(layer, "weight"):
                        spectral_norm(layer)
        history = play(
            config,
            variant,
            network,
            critic,
            train.a,
            gaussian(config.noise),
            falling=config.falling,
            evaluate_every=max(1, config.steps // config.scores),
            target=target,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
        )
        samples, pixels, steps = (history[name] for name in ("samples", "w1", "step"))
    of_target = features(target)
    of_samples = [wasserstein(features(images), of_target) for images in samples]
    legible = [legibility(logits(images), config.sure) for images in samples]
    row = {
        "w1_pixels": pixels[-1],
        "w1_features": of_samples[-1],
        **legible[-1],
        "classifier_accuracy": accuracy(classifier, true.to(device)),
        "steps": steps,
        "w1_pixels_by_step": pixels,
        "w1_features_by_step": of_samples,
        "sure_by_step": [found["sure"] for found in legible],
    }
    if seed == 0 and config.pictures:
        row |= _pictures(config.pictures, samples)
        if variant != "target":
            row["ways"] = records.picture(_ways(config, network, device))
    return row


def _classifier(
    config: Config, train: Images, seed: int, device: torch.device, checkpoint: Path
) -> nn.Module:
    """Trained once a seed, as in training-mnist: 99 % of the test digits are then right."""
    classifier, images = cnn(mean=0.0, std=1.0, seed=seed), train[: config.classifier_images]
    cycle = {"max_lr": 3e-3, "pct_start": 0.2, "cycle_momentum": False}
    fit(
        classifier,
        images,
        erm(),
        epochs=config.classifier_epochs,
        schedule=partial(
            OneCycleLR, total_steps=config.classifier_epochs * ceil(len(images) / 100), **cycle
        ),
        schedule_each="minibatch",
        seed=seed,
        evaluate=lambda model: {},
        checkpoint=checkpoint.with_name(f"classifier-{seed}.pt"),
        device=device,
        progress=False,
    )
    return classifier


def _pictures(side: int, samples: list[Tensor]) -> Row:
    """A few digits as numbers; a grid of the last ones; and a row of the same few at each score."""
    along = torch.cat([images[:side] for images in samples])
    return {
        "pictures": samples[-1][:side, 0].double().round(decimals=3).tolist(),
        "grid": records.picture(mosaic(samples[-1][: side**2], side)),
        "along": records.picture(mosaic(along, side)),
    }


@torch.no_grad()
def _ways(config: Config, network: nn.Module, device: torch.device) -> Tensor:
    """Five rows of digits on straight ways between two ω."""
    ends = torch.randn(2, 5, 1, config.noise, generator=torch.Generator().manual_seed(1002))
    between = torch.linspace(0, 1, config.pictures)[:, None]
    omega = torch.lerp(ends[0], ends[1], between).flatten(0, 1)
    return mosaic(network.eval()(omega.to(device)).cpu(), config.pictures)


@torch.no_grad()
def _output(layers: nn.Module, device: torch.device, images: Tensor) -> Tensor:
    return torch.cat([layers(part.to(device)).cpu() for part in images.split(1000)])
