"""What the CIFAR-10 experiments share: settings, images, augmentation, network and training.

load(config, device)            the images, on the device
augmented(update, generator)    the update on images that are cropped and mirrored at random
network(config, seed)           ResNet-18, or a smaller network for a CPU
train(config, model, ...)       SGD with momentum and a schedule, as fast as the device can
judged(config, model, test)     clean and robust accuracy: average, worst class, each class

``--size small`` has other defaults, for one CPU core; the record names the size and its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from experiments.rising import Clock, rising
from experiments.running import Row, Settings
from lib import data, models
from lib.attacks import robust_accuracy
from lib.balls import LInf
from lib.data import Images
from lib.fairness import classwise_accuracy
from lib.runs import processes
from lib.training import Update, fit

SHAPE = (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Cifar10(Settings):
    """Images, network, optimizer, and how the device computes."""

    datasets = ("cifar10",)
    size: Literal["full", "small"] = "full"
    """The defaults of the other settings: full for a GPU, or small for a CPU core."""
    images: int = 50_000
    """Images to train on, the first so many."""
    tests: int = 10_000
    """Images to test on, likewise."""
    network: Literal["resnet18", "resnet8", "cnn"] = "resnet18"
    """resnet18, or for a CPU resnet8 or cnn, which has no normalization layers."""
    epochs: int = 30
    """Epochs of training."""
    batch_size: int = 128
    """Images in a minibatch."""
    lr: float = 0.1
    """SGD's learning rate: the greatest of the cycle, or the first one."""
    schedule: Literal["one-cycle", "piecewise"] = "one-cycle"
    """Rate of each epoch: a cycle from lr / 10 over lr to lr / 100; or lr, and a tenth of it after
    half of the epochs, and again after three quarters."""
    momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 5e-4
    """c adds c/2 times the squared length of the parameters to the loss."""
    padding: int = 4
    """Black pixels around an image, from which as large an image is cut out at random."""
    test_batch: int = 1000
    """Images tested at a time."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Of the training; None: bfloat16 on a GPU, float32 on a CPU. Tests are in float32, on a GPU
    with convolutions in TF32."""
    channels_last: bool | None = None
    """Memory layout of images and kernels; None: yes, which is faster on a GPU and on a CPU."""
    compile: bool | None = None
    """Compile the network for the training; None: on one GPU."""

    def computing(self) -> dict[str, Any]:
        """precision, channels_last and compile, with what None stands for."""
        fast = self.device.startswith("cuda")
        chosen = {
            "precision": "bfloat16" if fast else "float32",
            "channels_last": True,
            "compile": fast and processes.world_size() == 1,
        }
        return {k: v if getattr(self, k) is None else getattr(self, k) for k, v in chosen.items()}

    def described(self) -> dict[str, Any]:
        return super().described() | self.computing()


@dataclass(frozen=True, kw_only=True)
class Attacked(Cifar10):
    """The same, with attacks in training and in testing."""

    eps: float = 8 / 255
    """Radius of the l-infinity ball, in pixel units."""
    steps: int = 10
    """Steps of the attack in training."""
    rise: float = 0.0
    """Share of the minibatches over which the radius rises from 0 to eps in training, below 1."""
    test_steps: int = 20
    """Steps of the attack that the robust accuracy is measured with."""

    def check(self, *may_be_zero: str) -> None:
        super().check(*may_be_zero)
        if not self.rise < 1:
            raise ValueError(f"rise must be >= 0 and < 1, got {self.rise}")

    def rising(self, make: Callable[[LInf], Update], clock: Clock | None = None) -> Update:
        """The update that make gives for a ball, the radius rising as the settings say."""
        steps = self.epochs * math.ceil(self.images / self.batch_size)
        return rising(make, self.eps, math.ceil(self.rise * steps), clock or Clock())


def load(config: Cifar10, device: torch.device) -> tuple[Images, Images]:
    """The images to train on and those to test on; ValueError for more than there are."""
    parts = []
    for split, name in (("train", "images"), ("test", "tests")):
        found, number = data.cifar10(split), getattr(config, name)
        if not 1 <= number <= len(found):
            raise ValueError(f"{name} must be 1 to {len(found)}, got {number}")
        parts.append(found[:number].to(device))
    return parts[0], parts[1]


def cropped(a: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Images [n, c, h, w], each cut out at random of itself with a black border, half mirrored.

    One of ``(2 padding + 1)²`` places and one of two orientations, all equally likely. The
    generator is the CPU's, the pixels stay on their device and in their memory layout. On several
    processes, of which each has its share of a minibatch, the whole of it gets what one process
    would draw. Raises ValueError for padding < 0.
    """
    if padding < 0:
        raise ValueError(f"padding must be >= 0, got {padding}")
    (n, _, h, w), device = a.shape, a.device
    place = processes.draw_local_rows(partial(torch.randint, 2 * padding + 1), (n, 2), generator)
    mirror = processes.draw_local_rows(partial(torch.randint, 2), (n, 1), generator)
    place, mirror = place.to(device), mirror.to(device).bool()
    rows = place[:, :1] + torch.arange(h, device=device)
    columns = torch.arange(w, device=device)
    columns = place[:, 1:] + torch.where(mirror, columns.flip(0), columns)
    bordered = F.pad(a, [padding] * 4).permute(0, 2, 3, 1)
    i = torch.arange(n, device=device)[:, None, None]
    found = bordered[i, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return torch.empty_like(a).copy_(found)  # in the layout of a


def augmented(update: Update, generator: torch.Generator, padding: int = 4) -> Update:
    """The update on images ``cropped`` anew each time.

    Its generators are this one and the update's own, so that fit's checkpoint holds them all.
    """

    def on_cropped(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return update(model, cropped(a, generator, padding), b)

    settings, drawn = {**update.settings, "padding": padding}, (generator, *update.generators)
    return replace(update, gradient=on_cropped, settings=settings, generators=drawn)


def network(
    config: Cifar10, seed: int, *, activation: str = "relu", norm: str = "batch"
) -> nn.Module:
    """The network of the settings.

    On several GPUs batch norm takes the statistics of the whole minibatch, as on one; such a run's
    checkpoints are not those of one GPU.
    """
    if config.network != "cnn":
        model = getattr(models, config.network)(activation=activation, norm=norm, seed=seed)
        if processes.world_size() > 1 and config.device.startswith("cuda"):
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model
    normal = {"mean": models.CIFAR10_MEAN, "std": models.CIFAR10_STD}
    return models.cnn(SHAPE, activation=activation, **normal, seed=seed)


def train(
    config: Cifar10,
    model: nn.Module,
    train: Images,
    update: Update,
    *,
    seed: int,
    checkpoint: Path | None,
    weight_decay: float | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]],
    **more: Any,
) -> dict[str, list[float]]:
    """Train where the images are, on augmented images; the rest is ``lib.training.fit``'s.

    weight_decay: the optimizer's; None: that of the settings.
    """
    computing = config.computing()
    if computing["compile"]:
        torch.compiler.reset()  # the networks of earlier cells
    sgd = partial(
        torch.optim.SGD,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay if weight_decay is None else weight_decay,
    )
    return fit(
        model,
        train,
        augmented(update, torch.Generator().manual_seed(seed + 1000), config.padding),
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=seed,
        optimizer=sgd,
        schedule=schedule(config),
        evaluate=evaluate,
        checkpoint=checkpoint,
        device=train.a.device,
        **computing,
        progress=None if processes.rank() == 0 else False,
        **more,
    )


def schedule(config: Cifar10) -> Callable[..., torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer -> the schedule of the settings, for one step an epoch."""
    if config.schedule == "piecewise":
        half, later = config.epochs // 2, config.epochs * 3 // 4
        return partial(MultiStepLR, milestones=[half, later], gamma=0.1)
    ends = {"div_factor": 10, "final_div_factor": 10, "cycle_momentum": False}
    return partial(OneCycleLR, max_lr=config.lr, total_steps=config.epochs, **ends)


def robust(config: Attacked, model: nn.Module, test: Images) -> float:
    """The robust accuracy, on average."""
    settings = {"steps": config.test_steps, "batch_size": config.test_batch}
    return robust_accuracy(model, test.a, test.b, LInf(config.eps), **settings)


def judged(config: Attacked, model: nn.Module, test: Images) -> Row:
    """Clean and robust accuracy: the average, the worst class's, and each class's (slide 25).

    The intervals are those of each class, at 95 %.
    """
    row, attack = {}, {"ball": LInf(config.eps), "steps": config.test_steps}
    for name, settings in (("clean", {}), ("robust", attack)):
        found = classwise_accuracy(model, test, batch_size=config.test_batch, **settings)
        row |= {name: found.average, f"{name}_worst": found.worst}
        row[f"{name}_classes"] = found.accuracy.tolist()
        row[f"{name}_intervals"] = found.interval.tolist()
    return row
