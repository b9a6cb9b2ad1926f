"""The numbers and switches that a caller relies on without naming them; most are the papers'.

A default is part of what a function promises: where one changes, its page, its record and this
table change with it. Functions and samples that are None by default are not listed.
"""

import importlib
import inspect
import pkgutil

import pytest

import lib

MNIST = {"shape": (1, 28, 28), "classes": 10, "mean": 0.1307, "std": 0.3081, "seed": 0}
COLORS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}
RESNET = {"classes": 10, "activation": "relu", "norm": "batch", "seed": 0} | COLORS
ATTACK = {"restarts": 1, "bounds": (0.0, 1.0)}
HIDDEN = {"hidden": (128, 128), "seed": 0}
WGAN = {"clip": 0.01, "penalty": 10.0, "one_sided": False, "constraint": "penalty"}
RUN = {"every": 60.0, "precision": "float32", "channels_last": False, "compile": False, "seed": 0}

DEFAULTS = {
    "attacks.attack": ATTACK,
    "attacks.pga": {"steepest": False},
    "attacks.right_under_attack": ATTACK | {"batch_size": 500, "progress": False},
    "attacks.robust_accuracy": ATTACK | {"batch_size": 500, "progress": False},
    "balls.Ball.lmo": {"check": True},
    "balls.Ball.project": {"check": True},
    "checks.check_counts": {"least": 1},
    "checks.check_number": {"positive": False},
    "danskin.gradients": {"return_losses": False},
    "danskin.min_norm_point": {"return_residual": False},
    "data.cifar10": {"split": "train"},
    "data.digits": {"split": "train", "seed": 0},
    "data.fundus_phantoms": {"split": "train", "n": 1000, "size": 32, "seed": 0, "lesions": True},
    "data.mnist": {"split": "train"},
    "data.retina": {"split": "train"},
    "fairness.ClassFocusedSampler": {"gamma": 0.5, "step_size": 1e-3},
    "fairness.ClasswiseAccuracy": {"confidence": 0.95},
    "fairness.classwise_accuracy": ATTACK | {"confidence": 0.95, "batch_size": 500},
    "games.gradient_descent_ascent": {"alternating": False},
    "gan.gan_objective": {"loss": "non-saturating"},
    "gan.image_critic": {"channels": 32, "seed": 0},
    "gan.image_generator": {"noise_dim": 32, "channels": 32, "seed": 0},
    "gan.point_critic": {"dim": 2} | HIDDEN,
    "gan.point_generator": {"dim": 2, "noise_dim": 2} | HIDDEN,
    "gan.train_gan": {"loss": "non-saturating", "critic_steps": 1, "batch_size": 128},
    "gan.train_wgan": WGAN | {"critic_steps": 5, "batch_size": 128},
    "gan.training_round": {"critic_steps": 5},
    "gan.wgan_objective": WGAN,
    "lipschitz.gradient_penalty": {"weight": 10.0, "one_sided": False},
    "lipschitz.lipschitz_lower_bound": {"steps": 50, "step_size": 0.1},
    "lipschitz.spectral_norm": {"stride": 1},
    "models.MaskedReLU": {"inplace": False},
    "models.cnn": MNIST | {"activation": "relu"},
    "models.linear": MNIST | {"bias": True},
    "models.mlp": MNIST | {"hidden": (200,), "activation": "relu", "bias": True},
    "models.resnet18": RESNET,
    "models.resnet8": RESNET,
    "runs.Checkpoint": {"every": 60.0},
    "runs.Session": RUN,
    "runs.Session.bar": {"unit": "step"},
    "runs.processes.started": {"device": "cpu"},
    "sharpness.hessian_product": {"batch_size": 1000},
    "sharpness.largest_eigenvalue": {"tolerance": 0.01, "iterations": 200, "batch_size": 1000},
    "training.accuracy": {"batch_size": 1000},
    "training.danskin": {"k": 10, "steps": 7, "weight_decay": 0.0, "bounds": (0.0, 1.0)},
    "training.danskin_gradient": {"weight_decay": 0.0},
    "training.fit": RUN | {"batch_size": 100, "lr": 1e-3, "schedule_each": "epoch"},
    "training.sharpness_aware": {"per_sample": False},
    "transport.empirical_rate": {"q": 1, "repeats": 10, "seed": 0},
    "transport.kantorovich_potentials": {"metric": "euclidean"},
    "transport.wasserstein": {"q": 1, "metric": "euclidean", "plan": False},
}


def plain_defaults(function):
    """The defaults of a function that are numbers, switches, texts or tuples of them."""
    plain = bool | int | float | str | tuple
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default for p in parameters if isinstance(p.default, plain) and p.default != ()
    }


def public():
    """What the wings hand out, and the methods of the classes among it: (name, function)."""
    for _, wing, _ in pkgutil.iter_modules(lib.__path__):
        for name, thing in vars(importlib.import_module(f"lib.{wing}")).items():
            ours = getattr(thing, "__module__", "").startswith(f"lib.{wing}")
            if name.startswith("_") or not ours or not callable(thing):
                continue
            yield f"{wing}.{name}", thing
            if inspect.isclass(thing):
                for method, function in vars(thing).items():
                    if inspect.isfunction(function) and method[0] != "_":
                        yield f"{wing}.{name}.{method}", function


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_not_named_has_the_value_that_callers_rely_on(name):
    thing = lib
    for part in name.split("."):
        thing = getattr(thing, part, None) or importlib.import_module(f"{thing.__name__}.{part}")
    assert plain_defaults(thing) == DEFAULTS[name]


def test_no_default_is_missing_from_the_table():
    found = set()
    for name, function in public():
        try:
            found |= {name} if plain_defaults(function) else set()
        except (TypeError, ValueError):  # a type alias has no signature
            continue
    assert found <= set(DEFAULTS), found - set(DEFAULTS)
