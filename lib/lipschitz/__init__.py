"""How fast a network can change: Lipschitz constants, bounded, found, imposed (slides 36, 39).

==========================  =========================================================  ========
``spectral_norm``           the largest singular value of a layer's linear map         slide 39
``lipschitz_bound``         the product over the layers, an upper bound                slide 36
``lipschitz_lower_bound``   the largest ``‖∇h‖`` that a search finds                   slide 36
``lipschitz_constant``      the exact constant of a small ReLU network                 slide 36
``gradient_penalty``        what a critic pays for gradients whose norm is not 1       slide 39
``clip_weights_``           every weight into [−c, c]                                  slide 39
``normalize_spectrally_``   layers whose map has norm 1, convolutions included         slide 39
==========================  =========================================================  ========
"""

from lib.lipschitz._bounds import SLOPES, Critic, lipschitz_bound, lipschitz_lower_bound
from lib.lipschitz._constraints import clip_weights_, gradient_penalty, normalize_spectrally_
from lib.lipschitz._exact import lipschitz_constant
from lib.lipschitz._operator_norm import spectral_norm

__all__ = [
    "SLOPES",
    "Critic",
    "clip_weights_",
    "gradient_penalty",
    "lipschitz_bound",
    "lipschitz_constant",
    "lipschitz_lower_bound",
    "normalize_spectrally_",
    "spectral_norm",
]
