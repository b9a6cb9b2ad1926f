"""Lipschitz constants: bounded, found and imposed (slides 36, 39)."""

from lib.lipschitz._bounds import (
    SLOPES,
    clip_weights_,
    gradient_penalty,
    lipschitz_bound,
    lipschitz_lower_bound,
    normalize_spectrally_,
)
from lib.lipschitz._exact import lipschitz_constant
from lib.lipschitz._operator_norm import spectral_norm

__all__ = [
    "SLOPES",
    "clip_weights_",
    "gradient_penalty",
    "lipschitz_bound",
    "lipschitz_constant",
    "lipschitz_lower_bound",
    "normalize_spectrally_",
    "spectral_norm",
]
