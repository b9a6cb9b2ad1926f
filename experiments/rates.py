"""How fast W1 between two samples falls with their size, in up to 32 dimensions (slide 33).

For uniform samples on the cube [0, 1]^p: the mean over repeats of the exact W1 between two
independent samples of n points, at n = smallest, 2 smallest, 4 smallest, ..., and the slope of
its logarithm over log n. Theory says −1/2 for p = 1, and −1/p from p = 3 on for large n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from experiments.running import Row, Settings
from lib.runs import checkpoints, processes
from lib.transport import memory_free, memory_needed, wasserstein


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """W1 between two uniform samples on cubes, against their size. Runs on the CPU alone."""

    dimensions: tuple[int, ...] = (1, 2, 3, 5, 8, 16, 32)
    """Dimensions p of the cubes."""
    smallest: int = 64
    """The smallest sample; the next ones have twice as many points each."""
    largest: tuple[int, ...] = (16_384,)
    """The largest sample for each dimension, or one number for all. Of 16384 points a pair takes
    minutes from p = 2 on, and 13 GB for p = 2."""
    repeats: tuple[int, ...] = (400, 8, 4, 4, 4, 4, 4)
    """Pairs of samples of each size for each dimension, or one number for all."""
    few: int = 8192
    """From this size on, and from p = 2 on, one pair of each size."""


def cells(config: Config) -> Iterator[tuple[str, int]]:
    """Every dimension for every seed; ValueError for sizes that make no sense or do not fit."""
    for p in config.dimensions:
        largest = max(_plan(config, p))
        needed, free = memory_needed(largest, largest, p), memory_free()
        if needed > free:
            raise ValueError(
                f"largest={largest} in {p} dimensions needs {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free: take a smaller one"
            )
    for seed in range(config.seeds):
        for p in config.dimensions:
            yield f"dimension-{p}", seed


def measure(config: Config, variant: str, seed: int, device: torch.device, checkpoint: Path) -> Row:
    """One dimension: the mean distance at each size, its deviation, and the slope."""
    p = int(variant.removeprefix("dimension-"))
    plan = _plan(config, p)
    # Each pair has a random stream of its own, so that the distances found so far can be kept.
    found = checkpoints.load(checkpoint) if checkpoint.exists() else {}
    processes.barrier()
    for n, repeats in plan.items():
        for repeat in range(repeats):
            key = f"{n}-{repeat}"
            if key not in found:
                rng = np.random.default_rng([seed, p, n, repeat])
                found[key] = wasserstein(*rng.random((2, n, p)))
        if processes.rank() == 0:
            checkpoints.save(checkpoint, found)
    w1 = [[found[f"{n}-{i}"] for i in range(repeats)] for n, repeats in plan.items()]
    mean = [fmean(distances) for distances in w1]
    slope, _ = np.polyfit(np.log(list(plan)), np.log(mean), 1)
    return {
        "n": list(plan),
        "w1": mean,
        "deviation": [stdev(distances) if len(distances) > 1 else 0.0 for distances in w1],
        "slope": float(slope),
    }


def _plan(config: Config, p: int) -> dict[int, int]:
    """The sizes of this dimension with the pairs of each, or ValueError."""
    places = len(config.dimensions)
    if not places or len(set(config.dimensions)) < places or min(config.dimensions) < 1:
        raise ValueError(f"dimensions must be >= 1 and differ, got {config.dimensions}")
    chosen = []
    for name in ("largest", "repeats"):
        values = getattr(config, name)
        if len(values) not in (1, places):
            raise ValueError(
                f"{name} must hold 1 number or {places}, one for each dimension, got {values}"
            )
        chosen.append(values[config.dimensions.index(p) if len(values) > 1 else 0])
    largest, repeats = chosen
    if not (config.smallest >= 1 and largest >= 2 * config.smallest and repeats >= 1):
        raise ValueError(
            "needs smallest >= 1, largest >= 2 smallest and repeats >= 1, got "
            f"smallest={config.smallest}, largest={largest}, repeats={repeats}"
        )
    doublings = (largest // config.smallest).bit_length()
    sizes = [config.smallest << k for k in range(doublings)]
    return {n: repeats if p == 1 or n < config.few else 1 for n in sizes}
