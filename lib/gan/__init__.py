"""Generative adversarial networks (slides 37 to 41)."""

from lib.gan._networks import (
    Noise,
    gaussian,
    image_critic,
    image_generator,
    point_critic,
    point_generator,
)
from lib.gan._objectives import js_divergence, train_gan, train_wgan
from lib.gan._targets import DEVIATION, RADIUS, Modes, eight_gaussians, means, modes, spiral
from lib.gan._training import History

__all__ = [
    "DEVIATION",
    "RADIUS",
    "History",
    "Modes",
    "Noise",
    "eight_gaussians",
    "gaussian",
    "image_critic",
    "image_generator",
    "js_divergence",
    "means",
    "modes",
    "point_critic",
    "point_generator",
    "spiral",
    "train_gan",
    "train_wgan",
]
