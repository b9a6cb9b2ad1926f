"""Adversarial examples (slides 7, 9 to 15)."""

from lib.attacks._accuracy import right_under_attack, robust_accuracy
from lib.attacks._ascent import Function, StepSize, fgsm, loss_of, mm_step, pga, step_sizes
from lib.attacks._attack import NoGradientWarning, attack, check_bounds
from lib.attacks._losses import Loss, cross_entropy, margin

__all__ = [
    "Function",
    "Loss",
    "NoGradientWarning",
    "StepSize",
    "attack",
    "check_bounds",
    "cross_entropy",
    "fgsm",
    "loss_of",
    "margin",
    "mm_step",
    "pga",
    "right_under_attack",
    "robust_accuracy",
    "step_sizes",
]
