"""Adversarial training whose radius rises, so that it does not begin at chance and stay there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lib.balls import LInf
from lib.training import Update


class Clock:
    """How many steps an update has made: what a checkpoint has to keep of it."""

    def __init__(self) -> None:
        self.t = 0

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


def rising(make: Callable[[LInf], Update], eps: float, over: int, clock: Clock) -> Update:
    """An update against a ball whose radius rises: at step t it is ``eps min(1, t / over)``.

    make: ball -> update; the updates must share what they keep, such as their generators. With
    over = 0 the radius is eps from the start.
    """
    whole = make(LInf(eps))

    def gradient(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        clock.t += 1
        return make(LInf(eps * min(1.0, clock.t / max(over, 1))))(model, a, b)

    return replace(
        whole, gradient=gradient, settings={**whole.settings, "rising over": over}, state=clock
    )
