"""What the tables of inputs share: a call, what is expected of it, and what holds of every call.

A row is a call and what is expected: a text that the one ValueError or TypeError must match (it
names the argument, the value and the remedy), ``Raises`` for another documented error, or a
function that is true of the result. ``examine`` holds for every row that nothing of the caller's
is changed, that no NaN comes out, that the answer comes in seconds, and that errors are our own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from lib import models

SECONDS = 10
REMEDY = re.compile(
    r"must|need|pass |give|call |choose|take|use |leave|look |ask|divide|number the|try |draw |"
    r"add one|expects|is it |reduction|let it"
)
ADDRESS = re.compile(r" at 0x[0-9a-f]+>")

# Inputs, labels and networks for what is asked of classifiers.
A = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
B = torch.tensor([0, 1, 2, 1])
NET = models.mlp((1, 2, 2), (5,), 3, mean=0.0, std=1.0).eval()


class Ending(nn.Module):
    """A network whose logits go through a function, or whose input does."""

    def __init__(self, end=lambda z: z, begin=lambda a: a):
        super().__init__()
        self.net, self.begin, self.end = models.mlp((1, 2, 2), (5,), 3), begin, end

    def forward(self, a):
        return self.end(self.net(self.begin(a)))


def ending(end):
    return Ending(end).eval()


IN_PLACE = Ending(begin=lambda a: a.sub_(0.1)).eval()
PARTLY = models.mlp((1, 2, 2), (5,), 3).eval()
PARTLY[2].train()


class Call(NamedTuple):
    """A function and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Raises(NamedTuple):
    """An error that is documented and neither a ValueError nor a TypeError, and its text."""

    error: type[Exception]
    said: str


def call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Call:
    return Call(function, arguments, keywords)


def rows(*tables: dict[str, tuple[Call, Any]]) -> Any:
    """The rows of tables, as pytest's parameters."""
    return pytest.mark.parametrize(
        ("asked", "expected"),
        [pytest.param(*row, id=name) for table in tables for name, row in table.items()],
    )


def near(value: Any) -> Callable[[Any], bool]:
    """The result is this number, list or tensor, up to rounding."""

    def is_near(result: Any) -> bool:
        found = torch.as_tensor(result, dtype=torch.float64)
        other = torch.as_tensor(value, dtype=torch.float64)
        return found.shape == other.shape and torch.allclose(found, other, rtol=1e-5, atol=1e-6)

    return is_near


def like(shape: list[int], dtype: torch.dtype = torch.float32) -> Callable[[Any], bool]:
    """The result is a tensor of this shape and type."""
    return lambda result: list(result.shape) == shape and result.dtype == dtype


def count(module: dict[str, Any]) -> int:
    """The rows of the tables among a module's names."""
    tables = [table for table in module.values() if isinstance(table, dict)]
    rows = [row for table in tables for row in table.values()]
    return sum(isinstance(row, tuple) and isinstance(row[0], Call) for row in rows)


def anything(result: Any) -> bool:
    """The call is fine; what it returns other tests ask."""
    return True


def examine(asked: Call, expected: Any, *, changes: tuple[Any, ...] = (), nan: bool = False):
    """The call does what is expected of it, and what is expected of every call.

    changes: arguments that the call may change. nan: it is documented that NaN comes out.
    """
    function, arguments, keywords = asked
    given = [getattr(function, "__self__", None), *arguments, *keywords.values()]
    given = [thing for thing in given if not any(thing is other for other in changes)]
    before, around = state(given), surroundings()
    with in_time():
        if not isinstance(expected, str | Raises):
            result = function(*arguments, **keywords)
        else:
            error, said = ((ValueError, TypeError), expected)
            if isinstance(expected, Raises):
                error, said = expected
            with pytest.raises(error) as raised:
                function(*arguments, **keywords)
            documented = isinstance(expected, Raises)
            text = ADDRESS.sub(">", str(raised.value))
            assert re.search(said, text, re.DOTALL), f"{said!r} is not in {text!r}"
            assert documented or REMEDY.search(text), f"no remedy in {text!r}"
            assert documented or in_lib(raised.tb), f"raised outside lib: {text!r}"
    same(before, state(given))
    assert surroundings() == around, "torch's generator, default type or gradient mode changed"
    if not isinstance(expected, str | Raises):
        assert nan or not holds_nan(result), f"NaN in {result}"
        assert expected(result), f"got {result}"


def in_lib(traceback: Any) -> bool:
    """Whether the last frame of an error is the library's: the check is ours, not torch's."""
    while traceback.tb_next:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "").startswith("lib.")


def state(thing: Any, depth: int = 0) -> Any:
    """A copy of all that a call could change in a thing, to compare afterwards."""
    if depth > 6:
        return None
    if isinstance(thing, torch.Tensor):
        with torch.no_grad():
            value = thing if thing.is_meta else thing.detach().clone()
        return (
            "tensor",
            thing.requires_grad,
            None if thing.grad is None else thing.grad.clone(),
            value,
            thing.device,
        )
    if isinstance(thing, np.ndarray):
        return "array", thing.copy()
    if isinstance(thing, nn.Module):
        modes = [module.training for module in thing.modules()]
        tensors = [*thing.named_parameters(), *thing.named_buffers()]
        return "module", modes, [(name, state(t, depth + 1)) for name, t in tensors]
    if isinstance(thing, torch.Generator):
        return None
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = [getattr(thing, field.name) for field in dataclasses.fields(thing)]
        return "dataclass", state(fields, depth + 1)
    if isinstance(thing, dict):
        return [(key, state(value, depth + 1)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [state(part, depth + 1) for part in thing]
    return None


def same(before: Any, after: Any) -> None:
    assert type(before) is type(after)
    if isinstance(before, list | tuple):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            same(one, other)
    elif isinstance(before, torch.Tensor):
        equal = before.is_meta or torch.equal(
            *(t.nan_to_num(nan=12345.0) if t.is_floating_point() else t for t in (before, after))
        )
        assert equal, "a tensor of the caller's was changed"
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after), "an array of the caller's was changed"
    else:
        assert before == after


def surroundings() -> tuple[Any, ...]:
    random = torch.get_rng_state().numpy().tobytes()
    return random, torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()


def holds_nan(result: Any) -> bool:
    if isinstance(result, torch.Tensor):
        return not result.is_meta and result.is_floating_point() and bool(result.isnan().any())
    if isinstance(result, np.ndarray):
        return result.dtype.kind == "f" and bool(np.isnan(result).any())
    if isinstance(result, float):
        return result != result
    if isinstance(result, dict):
        return any(map(holds_nan, result.values()))
    return isinstance(result, list | tuple) and any(map(holds_nan, result))


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """TimeoutError after some seconds, where the system has such a signal."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
