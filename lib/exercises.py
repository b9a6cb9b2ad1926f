"""Checks for the exercises: they name the likely slip, and never show a traceback.

A check compares the reader's function with an independent right one, case by case. Serves
the exercises of every chapter, so of every slide; what it prints is the same in every run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch


def check(
    answer: Callable | None,
    right: Callable,
    cases: Sequence[tuple],
    *,
    slips: Mapping[str, Callable] | None = None,
    tolerance: float = 1e-6,
) -> None:
    """Print whether answer agrees with right on all cases; if not, which slip it makes, or where.

    cases are tuples of arguments; each call gets its own copy. slips maps a message to a function
    that makes that mistake. Results are numbers, booleans, tensors or arrays of either, or tuples
    of these; x agrees with y where ``|x − y| <= tolerance · (1 + |y|)`` in every entry.
    Raises ValueError for cases or a right function that cannot check, and for a slip that agrees
    on all cases with right or with another slip.
    """
    slips = dict(slips or {})
    if not cases or not all(isinstance(case, tuple) for case in cases):
        raise ValueError("cases must be one tuple of arguments or more: write (x,) for one x")
    expected = [right(*copy.deepcopy(case)) for case in cases]
    if any("object" in _kind(y) or _difference(y, y, tolerance, nan=False) for y in expected):
        raise ValueError("right must return numbers, booleans, tensors or tuples, without NaN")

    def agree(xs: list, ys: list) -> bool:
        return not any(_difference(x, y, tolerance) for x, y in zip(xs, ys, strict=True))

    known = {"the right function": expected}
    for message, slip in slips.items():
        results = [slip(*copy.deepcopy(case)) for case in cases]
        for name, others in known.items():
            if agree(results, others):
                raise ValueError(f"the cases do not tell the slip {message!r} from {name!r}")
        known[message] = results

    if answer is None or answer is ...:
        return print("No answer yet: write the function, then run this cell again.")
    if not callable(answer):
        return print(f"Not yet: the answer must be a function, got {_kind(answer)}.")
    got = [_outcome(answer, case) for case in cases]
    if all(x is None or x is ... or isinstance(x, NotImplementedError) for x in got):
        return print("No answer yet: the function returns nothing.")
    if agree(got, expected):
        return print(f"Right: agrees with the check on {len(cases)} case{'s'[: len(cases) > 1]}.")
    for message in slips:
        if agree(got, known[message]):
            return print(f"Not yet: {message}")
    for number, (case, x, y) in enumerate(zip(cases, got, expected, strict=True), 1):
        if difference := _difference(x, y, tolerance):
            where = f"({', '.join(_show(argument) for argument in case)})"
            where = f", {where}" if len(where) <= 60 else ""
            return print(f"Not yet: case {number} of {len(cases)}{where}: {difference}.")


def _outcome(function: Callable, case: tuple) -> Any:
    try:
        return function(*copy.deepcopy(case))
    except Exception as error:
        return error


def _array(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = x.double() if x.is_floating_point() else x
    return np.asarray(x)


def _kind(x: Any) -> str:
    """What x is, in words; two results can agree only if the words are the same."""
    if x is None:
        return "an object None"
    if isinstance(x, tuple | list):
        return f"a tuple of {len(x)}"
    if isinstance(x, int | float | bool | np.generic | np.ndarray | torch.Tensor):
        array = _array(x)
        if array.dtype.kind in "biuf":
            word = "boolean" if array.dtype.kind == "b" else "number"
            return f"{word}s of shape {list(array.shape)}" if array.ndim else f"a {word}"
    return f"an object of type {type(x).__name__}"


def _difference(x: Any, y: Any, tolerance: float, nan: bool = True) -> str:
    """How x differs from y, in one line; empty where it does not."""
    if isinstance(x, Exception):
        line = (str(x).splitlines() or [""])[0]
        return f"the function raised {type(x).__name__}: {line}".rstrip(": ")
    if _kind(x) != _kind(y):
        return f"got {_kind(x)}, expected {_kind(y)}"
    if isinstance(y, tuple | list):
        parts = [_difference(*pair, tolerance, nan) for pair in zip(x, y, strict=True)]
        return next((f"entry {i} of the tuple: {part}" for i, part in enumerate(parts) if part), "")
    if "object" in _kind(y):
        return "" if x is y else "?"
    a, b = _array(x).astype(float), _array(y).astype(float)
    wrong = ~np.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=nan)
    if not wrong.any():
        return ""
    where = ""
    a, b = _array(x), _array(y)
    if a.size > 8:  # too many to read: show the first that differs
        index = tuple(np.argwhere(wrong)[0])
        where, a, b = f" at {[int(i) for i in index]}", a[index], b[index]
    for digits in (4, 8, 17):  # as few as show a difference
        if _show(a, digits) != _show(b, digits):
            break
    return f"got {_show(a, digits)}{where}, expected {_show(b, digits)}"


def _show(x: Any, digits: int = 4) -> str:
    if "object" in _kind(x):
        return re.sub(r" at 0x\w+", "", getattr(x, "__name__", type(x).__name__))
    if isinstance(x, tuple | list):
        return f"({', '.join(_show(part, digits) for part in x)})"
    array = _array(x)
    if array.size > 8:
        return _kind(x)
    if array.ndim:
        return f"[{', '.join(_show(row, digits) for row in array)}]"
    return str(bool(array)) if array.dtype.kind == "b" else f"{float(array):.{digits}g}"
