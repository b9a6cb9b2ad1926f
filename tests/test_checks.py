"""lib.checks by itself: what each check lets pass, and what it says of the rest."""

import math

import numpy as np
import pytest
import torch

from lib.checks import (
    check_counts,
    check_device,
    check_floats,
    check_function,
    check_labels,
    check_logits,
    check_losses,
    check_number,
    check_tensor,
    checked_by,
    in_place_refused,
)

META = torch.zeros(2, device="meta")
NAN, INF = math.nan, math.inf


def labels(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (lambda n: check_counts(n=n), (1, 7, True, np.int64(3), torch.tensor(2))),
        (lambda n: check_counts(-2, n=n), (-2, 0)),
        (lambda x: check_number("x", x), (0, 0.0, -0.0, 2.5, np.float32(1), torch.tensor(0.5))),
        (lambda x: check_number("x", x, positive=True), (math.ulp(0), 1e308, 3)),
        (lambda v: check_tensor("v", v), (torch.ones(2), torch.ones(0), labels(1))),
        (lambda v: check_floats("v", v), (torch.ones(2), torch.ones(0), torch.ones(2).half())),
        (lambda f: check_function("f", f, "abs"), (abs, torch.nn.ReLU(), lambda: 0)),
        (check_device, (None, "cpu", torch.device("cpu"))),
        (
            lambda z: check_logits(z, 2),
            (torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 3).half()),
        ),
        (lambda b: check_labels(b, torch.ones(2, 3)), (labels(0, 2), labels(1, 1))),
        (lambda b: check_labels(b, torch.ones(2, 1)), (labels(0, 1), labels(1, 1))),
        (lambda b: check_labels(b, torch.ones(0, 3)), (labels(),)),
        (lambda z: check_losses(z, labels(0, 1)), (torch.ones(2), torch.ones(2) * NAN)),
    ],
)
def test_what_is_fine_passes(check, arguments):
    for argument in arguments:
        assert check(argument) is None


@pytest.mark.parametrize(
    ("check", "arguments", "said"),
    [
        (lambda n: check_counts(n=n), (0, -1), "^n must be >= 1, got -?[01]$"),
        (lambda n: check_counts(m=1, n=n), (1.0, "2", None), "^n must be a whole number, got "),
        (lambda n: check_counts(0, n=n), (-1,), "^n must be >= 0, got -1$"),
        (
            lambda x: check_number("x", x),
            (-math.ulp(0), NAN, INF, -INF),
            "^x must be .* >= 0, got ",
        ),
        (lambda x: check_number("x", x), ("1", None, torch.ones(2)), "^x must be finite and >= 0"),
        (lambda x: check_number("x", x, positive=True), (0, 0.0, INF), "^x must be .* > 0, got "),
        (lambda v: check_tensor("v", v), (1.0, [1.0], np.ones(1)), r"pass torch.as_tensor\(v\)$"),
        (lambda v: check_tensor("v", v), (META,), "^v must hold values, .* meta: pass one of the"),
        (lambda v: check_floats("v", v), (META, [1.0]), "^v must "),
        (lambda v: check_floats("v", v), (labels(1), torch.ones(1) > 0), r"pass v\.float\(\)$"),
        (lambda v: check_floats("v", v), (torch.tensor([1, NAN]), torch.tensor(INF)), "NaN or inf"),
        (lambda f: check_function("f", f, "abs"), (None, 3), "^f must be a function such as abs"),
        (
            check_device,
            ("gpu", "meta", torch.device("meta"), 3.5),
            "^device must be at hand, .*got ",
        ),
        (
            lambda z: check_logits(z, 2),
            (torch.ones(2), torch.ones(3, 2), torch.ones(2, 0), torch.ones(2, 1, 1)),
            r"logits, floats \[2, classes\], got torch.float32 \[",
        ),
        (lambda z: check_logits(z, 2), (labels(1, 2)[:, None], [1.0]), "got (torch.int64|list)"),
        (lambda b: check_labels(b, torch.ones(2, 3)), (labels(-1, 0), labels(0, 3)), r"in 0\.\.2"),
        (lambda b: check_labels(b, torch.ones(2, 1)), (labels(0, 2),), r"in 0\.\.1, got 0\.\.2"),
        (
            lambda b: check_labels(b, torch.ones(2, 3)),
            (labels(0), labels(0, 1)[:, None], torch.ones(2), torch.tensor([0, 1]).int(), [0, 1]),
            r"labels must be int64 \[2\], got ",
        ),
        (
            lambda z: check_losses(z, labels(0, 1)),
            (torch.ones(()), torch.ones(1), torch.ones(2, 1), 0.5),
            r'one value a sample, \[2\], got .*: use reduction="none"',
        ),
    ],
)
def test_what_is_not_is_told_by_its_name(check, arguments, said):
    for argument in arguments:
        with pytest.raises(ValueError, match=said):
            check(argument)


@pytest.mark.parametrize("graph", [False, True])
def test_a_function_that_changes_its_argument_is_refused(graph):
    leaf = torch.ones(3, requires_grad=graph)
    told = pytest.raises(ValueError, match=r"^the model changes its input in place: let it begin")
    with told, in_place_refused("the model", leaf):
        leaf.sub_(1)
    with in_place_refused("the model", leaf):
        (leaf - 1).mul_(2)  # of its own


def test_other_errors_of_a_function_pass_as_they_are():
    for error in (RuntimeError("shapes"), KeyError("x")):
        passed = pytest.raises(type(error), match=str(error.args[0]))
        with passed, in_place_refused("the model", torch.ones(1)):
            raise error


def test_a_check_before_a_function_sees_the_arguments_that_it_names_and_the_defaults():
    seen = []

    def check(rho, steps):
        seen.append((rho, steps))
        check_number("rho", rho)

    @checked_by(check)
    def f(a, rho, *more, steps=3, **others):
        """Documented."""
        return a, rho, more, steps, others

    assert f(1, 2) == (1, 2, (), 3, {}) and f.__doc__ == "Documented." and f.__name__ == "f"
    assert f(1, 2, 4, 5, steps=6, x=7) == (1, 2, (4, 5), 6, {"x": 7})
    assert f(rho=8, a=9) == (9, 8, (), 3, {})
    assert f(1, 2, 4, 5) == (1, 2, (4, 5), 3, {})
    assert seen == [(2, 3), (2, 6), (8, 3), (2, 3)]
    with pytest.raises(ValueError, match="rho must be"):
        f(1, -1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'rho'"):
        f(1)
