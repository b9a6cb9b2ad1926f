"""Synthetic photographs of the eye's background, with the truth about each pixel (slide 24).

A saliency map claims to show where a model looks. On these pictures the claim can be scored: the
label says whether an eye has lesions, and a mask says where they are. Everything else is a
nuisance, drawn alike for both classes: light, tint, the side and place of the optic disc, the
macula, the vessels, noise. Lesions are dark (bleedings) or bright (deposits), so that the mean
color does not tell the label either. No eye was photographed: never for clinical use.

Eye coordinates: (−1, −1) is the upper left corner of the image, (1, 1) the lower right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.checks import check_counts
from lib.data._images import Images, check_split

CLASSES = ("no lesions", "lesions")
LESIONS = 3, 6  # least and most in an eye that has some

# Colors are red, green, blue.
TISSUE, OPTIC_DISC, DEPOSIT = (0.80, 0.40, 0.20), (1.0, 0.82, 0.52), (1.0, 0.92, 0.60)
BLEEDING = (0.45, 0.25, 0.30)  # what a bleeding leaves of the tissue's color
VESSEL = (0.30, 0.62, 0.50)  # what a vessel takes of it


@dataclass(frozen=True, eq=False)
class Phantoms(Images):
    """Images with the mask of the lesions, bool [n, h, w]; all False where the label is 0.

    Raises ValueError for a mask of another type or shape.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = (len(self.a), *self.a.shape[2:])
        if self.mask.dtype != torch.bool or self.mask.shape != shape:
            raise ValueError(
                f"mask must be bool {list(shape)}, got {self.mask.dtype} {list(self.mask.shape)}"
            )


def fundus_phantoms(
    split: str = "train",
    *,
    n: int = 1000,
    size: int = 32,
    seed: int = 0,
    lesions: bool = True,
) -> Phantoms:
    """n eyes [n, 3, size, size], half of them with lesions, and the lesions' mask (slide 24).

    Without a network; 2,000 at size 32 in about a second. The splits "train" and "test", and
    every seed, are drawn independently; the same arguments give the same eyes. A larger size
    shows the same eyes with more pixels.

    lesions=False: the same eyes, all of them healthy. Outside the mask no pixel differs.
    Raises ValueError for an unknown split, n < 2, size < 16 and seed < 0.

    >>> from lib.data import fundus_phantoms
    >>> eyes = fundus_phantoms("test", n=10, seed=3)
    >>> eyes.b.sum().item(), eyes.mask[eyes.b == 0].any().item()
    (5, False)
    """
    check_split(split, "train", "test")
    for name, value, least in (("n", n, 2), ("size", size, 16), ("seed", seed, 0)):
        check_counts(least, **{name: value})
    key = ("train", "test").index(split)
    labels, eyes, spots = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed, spawn_key=(key,)).spawn(3)
    )
    b = labels.permutation(n) % 2
    b = b * int(lesions)
    a, mask = _add_lesions(spots, _eyes(eyes, n, size), b)
    numbers = torch.from_numpy(b.astype(np.int64))
    return Phantoms(torch.from_numpy(a), numbers, CLASSES, torch.from_numpy(mask))


class _Eyes(NamedTuple):
    """n eyes before any lesion."""

    a: np.ndarray  # pixels [n, 3, h, w]
    light: np.ndarray  # the light that falls on each pixel [n, 1, h, w]
    center: np.ndarray  # of the eye's round edge [n, 2]
    radius: np.ndarray  # of that edge [n]
    optic: np.ndarray  # the optic disc's center [n, 2]


def _eyes(rng: np.random.Generator, n: int, size: int) -> _Eyes:
    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return _uniform(rng, low, high, n, *shape)

    center, radius = uniform(-0.04, 0.04, 2), uniform(0.88, 0.96)
    side = np.where(uniform(0, 1) < 0.5, -1, 1).astype(np.float32)  # a left or a right eye
    optic = center + np.stack([side * uniform(0.42, 0.6), uniform(-0.12, 0.12)], 1)
    macula = center + np.stack([-side * uniform(0.05, 0.2), uniform(-0.1, 0.1)], 1)

    # Light: a strength, a slope across the image, and less of it toward the edge.
    slope, strength = uniform(-0.22, 0.22, 2), uniform(0.8, 1.08)
    x, y = _pixels(size)
    light = strength[:, None, None] * (1 + slope[:, :1, None] * x + slope[:, 1:, None] * y)
    light *= 1 - uniform(0.15, 0.4, 1, 1) * _distance(center, size) ** 2
    light = light[:, None]

    shade = uniform(0.1, 0.3, 1, 1) * np.exp(-((_distance(macula, size) / 0.22) ** 2))
    a = _color(TISSUE) * (1 + uniform(-0.14, 0.14, 3, 1, 1)) * (1 - shade)[:, None]
    disc = _soft_disc(optic, uniform(0.15, 0.2), size)[:, None] * uniform(0.7, 0.95, 1, 1, 1)
    a = a + disc * (_color(OPTIC_DISC) - a)
    a *= 1 - _color(VESSEL) * _vessels(rng, optic, side, size)[:, None]
    a *= light * _soft_disc(center, radius, size)[:, None]
    a += 0.012 * rng.standard_normal(a.shape, np.float32)
    return _Eyes(a.clip(0, 1), light, center, radius, optic)


def _vessels(
    rng: np.random.Generator, optic: np.ndarray, side: np.ndarray, size: int
) -> np.ndarray:
    """How much vessel each pixel holds, 0 to 1 [n, h, w].

    Two arcades bend around the macula, two vessels run to the near edge; each carries two
    branches. All are quadratic curves from the optic disc or from a vessel, with a jitter.
    """
    n = len(optic)

    def jitter(*shape: int, scale: float = 0.12) -> np.ndarray:
        return scale * rng.standard_normal((n, *shape)).astype(np.float32)

    def curve(points: list[np.ndarray], t: np.ndarray) -> np.ndarray:
        start, bend, end = (p[..., None, :] for p in points)
        t = t[..., None]
        return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end

    # Bend and end of the four vessels, seen from an optic disc on the left (side = −1).
    bend = np.array([(0.1, 0.62), (0.1, -0.62), (-0.15, 0.25), (-0.15, -0.25)], np.float32)
    end = np.array([(1.15, 0.5), (1.15, -0.5), (-0.5, 0.75), (-0.5, -0.75)], np.float32)
    mirror = np.stack([-side, np.ones_like(side)], 1)[:, None]
    start = np.repeat(optic[:, None], 4, 1)
    bend, end = (start + mirror * p + jitter(4, 2) for p in (bend, end))
    t = np.broadcast_to(np.linspace(0, 1, size, dtype=np.float32), (n, 4, size))
    lines, widths = [curve([start, bend, end], t)], [0.13 - 0.07 * t]
    for _ in range(2):
        at = rng.uniform(0.25, 0.75, (n, 4, 1)).astype(np.float32)
        root = curve([start, bend, end], at)[..., 0, :]
        tip = root + 0.35 * (end - start) + jitter(4, 2, scale=0.25)
        lines.append(curve([root, (root + tip) / 2 + jitter(4, 2, scale=0.06), tip], t))
        widths.append(0.06 - 0.03 * t)
    points, width = np.concatenate(lines, 1), np.concatenate(widths, 1)
    step = np.sqrt((np.diff(points, axis=2) ** 2).sum(3))
    ink = width * np.concatenate([step, step[..., -1:]], 2)  # width times length
    return 1 - np.exp(-_splat(points.reshape(n, -1, 2), ink.reshape(n, -1), size))


def _splat(points: np.ndarray, ink: np.ndarray, size: int, width: float = 0.03) -> np.ndarray:
    """Ink per area [n, h, w]: each point's goes to its four nearest pixels, then is blurred.

    width: the blur's standard deviation in eye coordinates, about a vessel's half width.
    """
    place = (points + 1) * (size / 2) - 0.5
    corner = np.floor(place).astype(np.int64)
    part = place - corner
    n = len(points)
    total = np.zeros(n * size * size)
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        pixel = corner + step
        share = np.abs(1 - np.array(step) - part).prod(2) * ((pixel >= 0) & (pixel < size)).all(2)
        column, row = np.moveaxis(pixel.clip(0, size - 1), 2, 0)
        index = (np.arange(n)[:, None] * size + row) * size + column
        total += np.bincount(index.ravel(), (share * ink).ravel(), len(total))
    density = torch.from_numpy(total.astype(np.float32) * (size / 2) ** 2).reshape(n, 1, size, size)
    sigma = width * size / 2
    reach = int(np.ceil(3 * sigma))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1, 1)
    density = F.conv2d(F.conv2d(density, kernel, padding=(reach, 0)), kernel.mT, padding=(0, reach))
    return density[:, 0].numpy()


def _add_lesions(
    rng: np.random.Generator, eyes: _Eyes, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels with lesions where b is 1, and the mask of the pixels that a lesion covers."""
    n, size = len(b), eyes.a.shape[-1]

    def uniform(low: float, high: float) -> np.ndarray:
        return _uniform(rng, low, high, n)

    a, mask = eyes.a, np.zeros((n, size, size), bool)
    count = rng.integers(LESIONS[0], LESIONS[1] + 1, n) * b
    for k in range(LESIONS[1]):
        # Uniform in the inner part of the eye; what falls on the optic disc goes to the far side.
        angle, far = uniform(0, 2 * np.pi), 0.8 * np.sqrt(uniform(0, 1))
        offset = (eyes.radius * far)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        near = np.sqrt(((eyes.center + offset - eyes.optic) ** 2).sum(1)) < 0.34
        place = np.where(near[:, None], eyes.center - offset, eyes.center + offset)
        bright = (uniform(0, 1) < 0.5)[:, None, None, None]
        radius = np.where(bright.ravel(), uniform(0.05, 0.1), uniform(0.055, 0.13))
        cover = _soft_disc(place, radius, size)[:, None] * (k < count)[:, None, None, None]
        cover *= cover > 0.3  # a faint rim would be in the mask and not in sight
        color = np.where(bright, _color(DEPOSIT) * eyes.light, _color(BLEEDING) * eyes.a)
        a = a + cover * (color - a)
        mask |= cover[:, 0] > 0
    return a.clip(0, 1), mask


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> np.ndarray:
    return rng.uniform(low, high, shape).astype(np.float32)


def _pixels(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels' centers in eye coordinates, x [1, size] and y [size, 1]."""
    line = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    return line[None, :], line[:, None]


def _distance(points: np.ndarray, size: int) -> np.ndarray:
    """From each point [n, 2] to every pixel [n, size, size]."""
    x, y = _pixels(size)
    return np.sqrt((x - points[:, :1, None]) ** 2 + (y - points[:, 1:, None]) ** 2)


def _soft_disc(center: np.ndarray, radius: np.ndarray, size: int) -> np.ndarray:
    """1 inside a circle, 0 outside, and a ramp as wide as a pixel between [n, size, size]."""
    edge = (radius[:, None, None] - _distance(center, size)) * (size / 2)
    return (edge + 0.5).clip(0, 1)


def _color(color: tuple[float, float, float]) -> np.ndarray:
    return np.array(color, np.float32).reshape(3, 1, 1)
