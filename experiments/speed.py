"""How fast the trainings are: beside plain loops, and beside what the device can do at best.

"pgd" is PGD training of ResNet-18 on made-up images (slides 22 and 23): images a second, of a
plain float32 loop (on a GPU with convolutions in TF32, as is torch's default) and of
``lib.training.fit`` as experiments.cifar10 calls it, in turn; and the floating-point operations of
the latter a second, beside those of one large bfloat16 matrix product. "wgan" is the gradient
penalty on points in the plane (slide 40): generator steps a second, of the plain loop and of
``lib.gan.train_wgan``. Seeds are rounds. "profile" holds where the time of one of our steps goes:
operations with their shares, the greatest first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from experiments import cifar10
from experiments.running import Row
from lib.attacks import attack
from lib.balls import LInf
from lib.data import OBJECTS, Images
from lib.gan import eight_gaussians, gaussian, point_critic, point_generator, train_wgan
from lib.training import adversarial

PENALTY, CRITIC_STEPS = 0.1, 5


@dataclass(frozen=True, kw_only=True)
class Config(cifar10.Attacked):
    """Images and generator steps a second, of plain loops and of ours."""

    datasets = ()
    images: int = 12_800
    """Made-up images in an epoch; the second one is timed."""
    epochs: int = 2
    """Epochs of the PGD training, of which the last is timed."""
    matrix: int = 8192
    """Rows and columns of the matrices that are multiplied."""
    generator_steps: int = 200
    """Timed steps of the generator, each with five of the critic."""
    width: int = 512
    """Width of the two hidden layers of generator and critic."""
    points: int = 256
    """Points in a batch."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Both workloads in every round."""
    config.check("padding")
    for seed in range(config.seeds):
        yield "pgd", seed
        yield "wgan", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """One round of one workload."""
    return (_pgd if variant == "pgd" else _wgan)(config, seed, device)


def _pgd(config: Config, seed: int, device: torch.device) -> Row:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(config.images, *cifar10.SHAPE, generator=generator)
    b = torch.randint(10, (config.images,), generator=generator)
    images = Images(a, b, OBJECTS).to(device)
    update = adversarial(partial(attack, ball=LInf(config.eps), steps=config.steps))
    ends: list[float] = []

    def ended(model: nn.Module) -> dict[str, float]:
        ends.append(_now(device))
        return {}

    model = cifar10.network(config, seed).to(device)
    plain_epoch(config, model, images[: config.batch_size])  # warms up
    start = _now(device)
    plain_epoch(config, model, images)
    plain = config.images / (_now(device) - start)
    model = cifar10.network(config, seed)
    cifar10.train(config, model, images, update, seed=seed, checkpoint=None, evaluate=ended)
    ours = config.images / (ends[-1] - ends[-2])

    some = images[: config.batch_size]
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(some.a)
    # An attack step is a pass forward and one back to the image; then the last point is scored,
    # and the training step has one forward, one back to the images and one to the weights.
    passes = 2 * config.steps + 1 + 3
    rate = ours * passes * forward.get_total_flops() / len(some) / 1e12
    best = matrix_rate(config.matrix, device)
    once = partial(cifar10.train, replace(config, epochs=1), model, some, update)
    return {
        "plain_per_second": plain,
        "ours_per_second": ours,
        "speedup": ours / plain,
        "tflops": rate,
        "matrix_tflops": best,
        "share_of_matrix": rate / best,
        "profile": _profile(
            lambda: once(seed=seed, checkpoint=None, evaluate=lambda model: {}), device
        ),
    }


def _wgan(config: Config, seed: int, device: torch.device) -> Row:
    hidden = (config.width, config.width)
    real = eight_gaussians(20_000, torch.Generator().manual_seed(0))

    def players() -> tuple[nn.Module, nn.Module]:
        h, d = point_generator(hidden=hidden, seed=seed), point_critic(hidden=hidden, seed=seed)
        return h.to(device), d.to(device)

    def plain(steps: int) -> None:
        plain_wgan(*players(), real.to(device), config.points, steps)

    def ours(steps: int) -> None:
        train_wgan(
            *(*players(), real, gaussian(2), "penalty"),
            penalty=PENALTY,
            steps=steps,
            critic_steps=CRITIC_STEPS,
            batch_size=config.points,
            evaluate_every=0,
            device=device,
            progress=False,
        )

    rates = []
    for train in (plain, ours):
        train(2)  # warms up
        start = _now(device)
        train(config.generator_steps)
        rates.append(config.generator_steps / (_now(device) - start))
    return {
        "plain_per_second": rates[0],
        "ours_per_second": rates[1],
        "speedup": rates[1] / rates[0],
        "profile": _profile(partial(ours, 2), device),
    }


def plain_epoch(config: Config, model: nn.Module, images: Images) -> None:
    """PGD training as it is usually written: float32, and gradients of all that has one."""
    settings = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
    sgd = torch.optim.SGD(model.parameters(), **settings)
    batches = (part.split(config.batch_size) for part in (images.a, images.b))
    for a, b in zip(*batches, strict=True):
        moved = (a + config.eps * (2 * torch.rand_like(a) - 1)).clamp(0, 1)
        for _ in range(config.steps):
            moved.requires_grad_()
            [g] = torch.autograd.grad(cross_entropy(model(moved), b), moved)
            moved = moved.detach() + config.eps / 4 * g.sign()
            moved = (a + (moved - a).clamp(-config.eps, config.eps)).clamp(0, 1)
        sgd.zero_grad()
        cross_entropy(model(moved), b).backward()
        sgd.step()


def plain_wgan(h: nn.Module, d: nn.Module, real: Tensor, batch_size: int, steps: int) -> None:
    """Slide 40 as it is usually written: one pass for each kind of points, autograd for all."""
    d = nn.Sequential(*(nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in d))
    primal, dual = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.9)) for m in (h, d))
    device = real.device
    for _ in range(steps):
        for _ in range(CRITIC_STEPS):
            batch = real[torch.randint(len(real), (batch_size,), device=device)]
            with torch.no_grad():
                fake = h(torch.randn(batch_size, 2, device=device))
            t = torch.rand(batch_size, 1, device=device)
            between = (t * batch + (1 - t) * fake).requires_grad_()
            [g] = torch.autograd.grad(d(between).sum(), between, create_graph=True)
            penalty = PENALTY * (g.norm(dim=1) - 1).square().mean()
            loss = d(fake).mean() - d(batch).mean() + penalty
            dual.zero_grad()
            loss.backward()
            dual.step()
        loss = -d(h(torch.randn(batch_size, 2, device=device))).mean()
        primal.zero_grad()
        loss.backward()
        primal.step()


def matrix_rate(n: int, device: torch.device, repeats: int = 20) -> float:
    """10¹² operations a second, in the product of two n × n matrices of bfloat16: the ceiling."""
    left, right = torch.randn(2, n, n, device=device, dtype=torch.bfloat16)
    left @ right
    start = _now(device)
    for _ in range(repeats):
        left @ right
    return repeats * 2 * n**3 / (_now(device) - start) / 1e12


def _now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _profile(work: Callable[[], None], device: torch.device, most: int = 8) -> list[list]:
    """The operations that take most of the device's time: [name, share of the time]."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        work()
    events, name = found.key_averages(), "self_cpu_time_total"
    if device.type == "cuda":
        events = [e for e in events if e.device_type == DeviceType.CUDA]
        name = "self_device_time_total"
    spent = {e.key: float(getattr(e, name)) for e in events if not e.is_user_annotation}
    total = sum(spent.values()) or 1.0
    greatest = sorted(spent.items(), key=lambda item: -item[1])[:most]
    return [[key, round(microseconds / total, 4)] for key, microseconds in greatest]
