"""Adversarial examples (slides 7, 9 to 15)."""

from lib.attacks._ascent import (
    Function,
    Loss,
    StepSize,
    cross_entropy,
    fgsm,
    loss_of,
    mm_step,
    pga,
    step_sizes,
)
from lib.attacks._attack import attack, robust_accuracy

__all__ = [
    "Function",
    "Loss",
    "StepSize",
    "attack",
    "cross_entropy",
    "fgsm",
    "loss_of",
    "mm_step",
    "pga",
    "robust_accuracy",
    "step_sizes",
]
