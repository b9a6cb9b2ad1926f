"""Training: ERM, adversarial, Danskin, sharpness-aware (slides 5, 16 to 18, 22, 23, 43, 44)."""

from lib.attacks import cross_entropy
from lib.training._fit import accuracy, fit
from lib.training._gradients import (
    adversarial_gradient,
    danskin_gradient,
    mean_loss,
    risk_gradient,
    sharpness_aware_gradient,
)
from lib.training._sharpness_aware import ball_stability, sharpness_aware
from lib.training._state import Sampler
from lib.training._updates import Update, adversarial, danskin, erm

__all__ = [
    "Sampler",
    "Update",
    "accuracy",
    "adversarial",
    "adversarial_gradient",
    "ball_stability",
    "cross_entropy",
    "danskin",
    "danskin_gradient",
    "erm",
    "fit",
    "mean_loss",
    "risk_gradient",
    "sharpness_aware",
    "sharpness_aware_gradient",
]
