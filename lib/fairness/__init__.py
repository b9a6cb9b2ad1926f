"""Fairness between classes: who pays for the average (slides 25 and 26).

Class-focused online learning (Pethick et al., 2023) trains for the worst class,
``min_x max_c v_c(x)`` with v_c the robust risk of class c. A bandit chooses the classes while the
model trains: it draws them, sees the loss of what it drew, and raises the weight of those that
the model gets wrong.

    class_focused_step     the bandit's update of its weights
    ClassFocusedSampler    which classes, and which of their samples, to train on next
    classwise_accuracy     how each class fares, clean or under attack, with confidence intervals
"""

from lib.fairness._classwise import ClasswiseAccuracy, classwise_accuracy
from lib.fairness._sampler import ClassFocusedSampler, class_focused_step

__all__ = ["ClassFocusedSampler", "ClasswiseAccuracy", "class_focused_step", "classwise_accuracy"]
