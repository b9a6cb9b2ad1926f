"""Generative adversarial networks (slides 37 to 41).

train_wgan, train_gan                             long runs, scored and kept       slides 37 to 41
critic_step, generator_step, training_round       the algorithm                    slide 40
Objective, wgan_objective, gan_objective          what is optimized                slides 37, 39, 41
js_divergence                                     what the first GAN measures      slide 41
gaussian, point_*, image_*                        noise, generators, critics       slides 37, 38
eight_gaussians, spiral, modes                    targets in the plane             slide 37
"""

from lib.gan._checks import OptimizerOf
from lib.gan._networks import (
    Noise,
    gaussian,
    image_critic,
    image_generator,
    point_critic,
    point_generator,
)
from lib.gan._objectives import (
    CONSTRAINTS,
    LOSSES,
    gan_objective,
    js_divergence,
    wgan_objective,
)
from lib.gan._run import History
from lib.gan._settings import RunSettings
from lib.gan._steps import Objective, critic_step, generator_step, training_round
from lib.gan._targets import DEVIATION, RADIUS, Modes, eight_gaussians, means, modes, spiral
from lib.gan._training import train_gan, train_wgan

__all__ = [
    "CONSTRAINTS",
    "DEVIATION",
    "LOSSES",
    "RADIUS",
    "History",
    "Modes",
    "Noise",
    "Objective",
    "OptimizerOf",
    "RunSettings",
    "critic_step",
    "eight_gaussians",
    "gan_objective",
    "gaussian",
    "generator_step",
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
    "training_round",
    "wgan_objective",
]
