"""What functions of every wing refuse, each in one sentence: the argument, its value, a remedy.

    check_counts, check_number            whole numbers; numbers of an interval
    check_tensor, check_floats            other objects in their place, integers, NaN
    check_function, check_device          what cannot be called, devices that are not there
    check_logits, check_labels            what a classifier returns, and the labels beside it
    check_losses                          what a loss returns
    in_place_refused                      what a function does to its argument
    checked_by                            a check that stands before a function, not in it

They raise ValueError and return nothing.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def check_counts(least: int = 1, **counts: Any) -> None:
    """ValueError, naming it, for a count that is not a whole number >= least.

    >>> check_counts(steps=2.5)
    Traceback (most recent call last):
    ValueError: steps must be a whole number, got 2.5
    """
    for name, count in counts.items():
        try:
            whole = operator.index(count)
        except TypeError:
            raise ValueError(f"{name} must be a whole number, got {count!r}") from None
        if whole < least:
            raise ValueError(f"{name} must be >= {least}, got {count}")


def check_number(name: str, value: Any, *, positive: bool = False) -> None:
    """ValueError unless value is a finite number >= 0, or > 0 if positive.

    >>> check_number("rho", float("nan"))
    Traceback (most recent call last):
    ValueError: rho must be finite and >= 0, got nan
    """
    asked = "> 0" if positive else ">= 0"
    try:
        fine = (value > 0 if positive else value >= 0) and value < math.inf
    except (TypeError, RuntimeError):  # no number, or several
        fine = False
    if not fine:
        raise ValueError(f"{name} must be finite and {asked}, got {value!r}")


def check_tensor(name: str, value: Any) -> None:
    """ValueError for what is no tensor, and for a tensor without values, on the device "meta".

    >>> check_tensor("v", [1.0])
    Traceback (most recent call last):
    ValueError: v must be a tensor, got list: pass torch.as_tensor(v)
    """
    if not isinstance(value, Tensor):
        got = type(value).__name__
        raise ValueError(f"{name} must be a tensor, got {got}: pass torch.as_tensor({name})")
    if value.is_meta:
        raise ValueError(
            f"{name} must hold values, got a tensor on the device meta: pass one of the CPU"
        )


def check_floats(name: str, value: Any) -> None:
    """ValueError unless value is a tensor of finite floats.

    >>> check_floats("v", torch.tensor([1, 2]))
    Traceback (most recent call last):
    ValueError: v must hold floats, got torch.int64: pass v.float()
    """
    check_tensor(name, value)
    if not value.is_floating_point():
        raise ValueError(f"{name} must hold floats, got {value.dtype}: pass {name}.float()")
    # The sum takes one pass where all is well; large finite entries may overflow it.
    if not math.isfinite(value.detach().sum()) and not torch.isfinite(value).all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity: look for where it comes from"
        )


def check_function(name: str, value: Any, such_as: str) -> None:
    """ValueError for what cannot be called.

    >>> check_function("loss", None, "lib.attacks.cross_entropy")
    Traceback (most recent call last):
    ValueError: loss must be a function such as lib.attacks.cross_entropy, got None
    """
    if not callable(value):
        raise ValueError(f"{name} must be a function such as {such_as}, got {value!r}")


def check_device(device: str | torch.device | None) -> None:
    """ValueError for a device that torch does not know or that is not at hand; None is fine.

    >>> check_device("gpu")
    Traceback (most recent call last):
    ValueError: device must be at hand, as "cpu" or "cuda", got 'gpu'
    """
    try:
        at_hand = device is None or not torch.empty(1, device=device).is_meta
    except (RuntimeError, AssertionError, TypeError):  # unknown to torch, or not in this machine
        at_hand = False
    if not at_hand:
        raise ValueError(f'device must be at hand, as "cpu" or "cuda", got {device!r}')


def check_logits(logits: Any, n: int) -> None:
    """ValueError unless logits are floats [n, classes].

    >>> check_logits(torch.zeros(4), 4)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: the model must return logits, floats [4, classes], got torch.float32 [4]: ...
    """
    fine = isinstance(logits, Tensor) and logits.is_floating_point()
    if not fine or logits.dim() != 2 or len(logits) != n or logits.shape[1] == 0:
        raise ValueError(
            f"the model must return logits, floats [{n}, classes], got {_described(logits)}: "
            "for a single logit return z[:, None]"
        )


def check_labels(b: Any, logits: Tensor) -> None:
    """ValueError for labels that are no classes of the logits [n, c]; one logit tells two apart.

    >>> check_labels(torch.tensor([0, 3]), torch.zeros(2, 3))
    Traceback (most recent call last):
    ValueError: labels must lie in 0..2, got 0..3
    """
    classes = max(2, logits.shape[1])
    if not isinstance(b, Tensor) or b.dtype != torch.int64 or b.shape != logits.shape[:1]:
        raise ValueError(f"labels must be int64 [{len(logits)}], got {_described(b)}")
    try:
        low, high = (int(end) for end in b.aminmax()) if len(b) else (0, 0)
    except RuntimeError:  # inside vmap no values are known
        raise ValueError(f"labels must lie in 0..{classes - 1}, got others") from None
    if not 0 <= low <= high < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {low}..{high}")


def check_losses(values: Any, b: Tensor) -> None:
    """ValueError unless a loss returned one value for each of the labels [n].

    >>> check_losses(torch.tensor(0.7), torch.tensor([0, 3]))
    Traceback (most recent call last):
    ValueError: loss must return one value a sample, [2], got []: use reduction="none"
    """
    if not isinstance(values, Tensor) or values.shape != b.shape:
        raise ValueError(
            f"loss must return one value a sample, {list(b.shape)}, got "
            f"{list(values.shape) if isinstance(values, Tensor) else type(values).__name__}: "
            'use reduction="none"'
        )


@contextmanager
def in_place_refused(name: str, leaf: Tensor) -> Iterator[None]:
    """ValueError if a function, so named, changes the leaf that it is called with.

    >>> a = torch.ones(2)
    >>> with in_place_refused("the model", a):  # doctest: +ELLIPSIS
    ...     _ = a.sub_(0.5)
    Traceback (most recent call last):
    ValueError: the model changes its input in place: let it begin with a copy ...
    """
    changes = (
        f"{name} changes its input in place: let it begin with a copy (a = a - mean, not a -= mean)"
    )
    version = leaf._version
    try:
        yield
    except RuntimeError as error:
        if "in-place" not in str(error):
            raise
        raise ValueError(changes) from error
    if leaf._version != version:
        raise ValueError(changes)


def checked_by(check: Callable[..., None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: check sees those of a function's arguments that it names, before the function.

    For functions whose code a page shows: it remains what the slide says.

    >>> @checked_by(lambda rho: check_number("rho", rho))
    ... def double(rho):
    ...     return 2 * rho
    >>> double(-1.0)
    Traceback (most recent call last):
    ValueError: rho must be finite and >= 0, got -1.0
    """
    names = list(inspect.signature(check).parameters)

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
        order = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

        @wraps(function)
        def checked(*arguments: P.args, **keywords: P.kwargs) -> R:
            given = defaults | dict(zip(order, arguments, strict=False)) | keywords
            if all(name in given for name in names):  # else the function says what is missing
                check(*(given[name] for name in names))
            return function(*arguments, **keywords)

        return checked

    return decorated


def _described(value: Any) -> str:
    """The type and shape of a tensor, the type of anything else."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
