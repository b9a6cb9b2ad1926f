"""Optimal transport between two clouds of points, exactly (slides 27 to 34)."""

from lib.transport._clouds import METRICS, Cloud
from lib.transport._memory import memory_free, memory_needed
from lib.transport._push_forward import Rate, empirical_rate, pushed_density
from lib.transport._wasserstein import kantorovich_potentials, wasserstein

__all__ = [
    "METRICS",
    "Cloud",
    "Rate",
    "empirical_rate",
    "kantorovich_potentials",
    "memory_free",
    "memory_needed",
    "pushed_density",
    "wasserstein",
]
