"""The house: the names that others rely on, and the order of the wings."""

from __future__ import annotations

import importlib

import pytest

# What checks from outside import, and from where: nothing on this list moves.
CONTRACT = {
    "lib.balls": "LInf L2 L1",
    "lib.attacks": "loss_of fgsm pga mm_step attack robust_accuracy",
    "lib.danskin": "directional_derivative min_norm_point descent_direction",
    "lib.training": "fit erm adversarial danskin sharpness_aware ball_stability",
    "lib.fairness": "ClassFocusedSampler classwise_accuracy",
    "lib.transport": "wasserstein kantorovich_potentials",
    "lib.lipschitz": "spectral_norm lipschitz_bound gradient_penalty clip_weights_",
    "lib.gan": "train_wgan train_gan js_divergence",
    "lib.games": "gradient_descent_ascent extragradient optimistic_gradient",
    "lib.data": "digits mnist cifar10 retina fundus_phantoms Images",
}
NAMES = [(module, name) for module, names in CONTRACT.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{m}.{n}" for m, n in NAMES])
def test_the_names_that_others_rely_on_are_where_they_were(module, name):
    assert callable(getattr(importlib.import_module(module), name))
