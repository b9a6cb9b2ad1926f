"""Checks for the exercises of every chapter (all slides): they name the likely slip."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch

from lib.checks import check_number


def check(
    answer: Callable | None,
    right: Callable,
    cases: Sequence[tuple],
    *,
    slips: Mapping[str, Callable] | None = None,
    tolerance: float = 1e-6,
) -> None:
    """Print whether answer agrees with right on all cases, else its slip or the first difference.

    cases are tuples of arguments; each call gets its own copy. slips maps a message to a function
    that makes that mistake. Results are numbers, booleans, tensors, arrays, or tuples of these;
    x agrees with y where ``|x − y| <= tolerance · (1 + |y|)``. Errors in answer are printed.
    Raises ValueError for cases that are no tuples, and for a slip that no case tells from right.

    >>> from lib.pages import exercises
    >>> slips = {"the square of x, not its double.": lambda x: x**2}
    >>> exercises.check(lambda x: x * x, lambda x: 2 * x, [(1.0,), (3.0,)], slips=slips)
    Not yet: the square of x, not its double.
    """
    if not cases or not all(isinstance(case, tuple) for case in cases):
        raise ValueError("cases must be one tuple of arguments or more: write (x,) for one x")

    check_number("tolerance", tolerance)

    def differences(xs: list, ys: list) -> list[str]:
        return [_difference(x, y, tolerance) for x, y in zip(xs, ys, strict=True)]

    known = {}
    for name, function in {"right": right, **(slips or {})}.items():
        known[name] = [_call(function, case) for case in cases]
        if any(differences(known[name], known[name])):
            raise ValueError(f"{name!r} must return numbers, tensors or tuples, without NaN")
    expected = known.pop("right")
    for message, results in known.items():
        if not any(differences(results, expected)):
            raise ValueError(f"no case tells the slip {message!r} from right: add one that does")

    if answer is None or answer is ...:
        return print("No answer yet: write the function, then run this cell again.")
    got = []
    for case in cases:
        try:
            got.append(_call(answer, case))
        except Exception as error:
            got.append(error)
    if all(x is None or x is ... or isinstance(x, NotImplementedError) for x in got):
        return print("No answer yet: the function returns nothing.")
    wrong = differences(got, expected)
    if not any(wrong):
        return print(f"Right: agrees with the check on {len(cases)} case{'s' * (len(cases) > 1)}.")
    for message, results in known.items():
        if not any(differences(got, results)):
            return print(f"Not yet: {message}")
    first = next(i for i, difference in enumerate(wrong) if difference)
    inputs = _show(_plain(cases[first]))
    print(f"Not yet: case {first + 1} of {len(cases)}, {inputs}: {wrong[first]}.")


def sealed(check: Callable) -> Callable:
    """A check with the names of its notebook as they are now: what a reader defines later under the
    name of one of its helpers, even the answer itself, does not change it. A decorator.

    >>> from lib.pages import exercises
    >>> right = abs
    >>> check_size = exercises.sealed(lambda answer: exercises.check(answer, right, [(-2,)]))
    >>> right = None
    >>> check_size(lambda x: -x)
    Right: agrees with the check on 1 case.
    """
    if not isinstance(check, FunctionType):
        raise ValueError(f"check must be a function of the notebook, got {check!r}")
    names = dict(check.__globals__)

    def copy_of(function: FunctionType) -> FunctionType:
        new = FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, function.__closure__
        )
        new.__kwdefaults__ = function.__kwdefaults__
        return new

    for name, value in check.__globals__.items():
        if isinstance(value, FunctionType) and value.__globals__ is check.__globals__:
            names[name] = copy_of(value)
    return copy_of(check)


def _call(function: Callable, case: tuple) -> Any:
    return _plain(function(*copy.deepcopy(case)))


def _plain(x: Any) -> Any:
    """Numbers and tensors as arrays, lists as tuples, anything else as it is."""
    if isinstance(x, tuple | list):
        return tuple(map(_plain, x))
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu().double() if x.is_floating_point() else x.cpu()
    array = np.asarray(x)
    return array if array.dtype.kind in "biuf" else x


def _kind(x: Any) -> str:
    if isinstance(x, tuple):
        return f"a tuple of {len(x)}"
    if not isinstance(x, np.ndarray):
        return f"an object of type {type(x).__name__}"
    word = "boolean" if x.dtype == bool else "number"
    return f"{word}s of shape {list(x.shape)}" if x.ndim else f"a {word}"


def _difference(x: Any, y: Any, tolerance: float) -> str:
    """How x differs from y, in one line; empty where they agree. NaN and objects never agree."""
    if isinstance(x, Exception):
        line = str(x).partition("\n")[0]
        return f"the function raised {type(x).__name__}: {line}".rstrip(".: ")
    if isinstance(x, tuple) and isinstance(y, np.ndarray):
        x = _stacked(x, y)
    if _kind(x) != _kind(y) or not isinstance(y, tuple | np.ndarray):
        return f"got {_kind(x)}, expected {_kind(y)}"
    if isinstance(y, tuple):
        parts = [_difference(*pair, tolerance) for pair in zip(x, y, strict=True)]
        return next((f"entry {i} of the tuple: {part}" for i, part in enumerate(parts) if part), "")
    wrong = ~np.isclose(x.astype(float), y.astype(float), rtol=tolerance, atol=tolerance)
    if not wrong.any():
        return ""
    where = ""
    if y.size > 8:  # too many to read: show the first that differs
        index = tuple(np.argwhere(wrong)[0].tolist())
        where, x, y = f" at {list(index)}", x[index], y[index]
    digits = next((d for d in (4, 8) if _show(x, d) != _show(y, d)), 17)
    return f"got {_show(x, digits)}{where}, expected {_show(y, digits)}"


def _stacked(x: tuple, y: np.ndarray) -> Any:
    """x, the numbers of a list or tuple, as one array if it has the shape of y; else x."""
    try:
        array = np.array(x)
    except ValueError:  # parts of different shapes
        return x
    return array if array.shape == y.shape and array.dtype.kind in "biuf" else x


def _show(x: Any, digits: int = 4) -> str:
    if isinstance(x, tuple):
        return f"({', '.join(_show(part, digits) for part in x)})"
    if not isinstance(x, np.ndarray | np.generic) or x.size > 8:
        return _kind(x)
    if x.ndim:
        return f"[{', '.join(_show(row, digits) for row in np.asarray(x))}]"
    return str(x) if x.dtype == bool else f"{x.item() + 0:.{digits}g}"
