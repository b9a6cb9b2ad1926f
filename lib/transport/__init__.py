"""Optimal transport between two clouds of points, exactly (slides 27 to 34)."""

from lib.transport._wasserstein import (
    METRICS,
    Rate,
    empirical_rate,
    kantorovich_potentials,
    pushed_density,
    wasserstein,
)

__all__ = [
    "METRICS",
    "Rate",
    "empirical_rate",
    "kantorovich_potentials",
    "pushed_density",
    "wasserstein",
]
