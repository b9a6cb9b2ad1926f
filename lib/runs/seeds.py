"""Torch's global generators, seeded for the duration of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch


@contextmanager
def torch_seeded(seed: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Torch's global generators of the CPU and the device, seeded; at the end as they were.

    Dropout draws from them, and so may a loss or an attack that was given no generator.

    >>> with torch_seeded(3, torch.device("cpu")) as generators:
    ...     list(generators), torch.initial_seed()
    (['torch cpu'], 3)
    """
    generators: dict[str, Any] = {"torch cpu": torch.default_generator}
    if device.type in ("cuda", "xpu"):
        of_type = torch.get_device_module(device).default_generators
        generators[f"torch {device.type}"] = of_type[device.index or 0]
    elif device.type == "mps":  # whose one generator is behind functions
        generators["torch mps"] = SimpleNamespace(
            manual_seed=torch.mps.manual_seed,
            get_state=torch.mps.get_rng_state,
            set_state=torch.mps.set_rng_state,
        )
    states = {name: generator.get_state() for name, generator in generators.items()}
    try:
        for generator in generators.values():
            generator.manual_seed(seed)
        yield generators
    finally:
        for name, generator in generators.items():
            generator.set_state(states[name])
