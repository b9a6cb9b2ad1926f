"""What a run was made of, as text that can be compared: settings, functions, networks, numbers.

    fingerprint(name=thing, ...)    names and texts; and the generators that are found inside
    differences(was, now)           what changed between two fingerprints, each in a sentence
    checksum(*tensors)              a number that tells other data apart

A function is known by its name, a ``functools.partial`` also by its arguments, and a function of
the user's own also by its code and the values that it captured. A network is known by its layers,
their numbers (slopes, strides, dropout) and its initial weights; an object by its ``settings``, a
mapping, if it has one, else by its attributes.
"""

from __future__ import annotations

import enum
import random
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, enum.Enum, range, slice)
HOW_FAST = ("foreach", "fused", "capturable")  # options of optimizers that go with the device
DEPTH = 12  # things within things; what is deeper is known by its type alone
MOST = 5  # differences that are told
INITIAL = "'s initial "  # in the names of a network's weights


def checksum(*tensors: Tensor) -> int:
    """A number that tells other data apart: the CRC-32 of the tensors' bytes, on any device.

    >>> checksum(torch.arange(3)) == checksum(torch.arange(3).clone())
    True
    """
    value = 0
    for tensor in tensors:
        raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        value = zlib.crc32(raw.numpy().data, value)
    return value


@dataclass
class Fingerprint:
    """Names and texts. Of ``options``, a torch object's own, only those that both have count.

    >>> described = Fingerprint()
    >>> described.add("eps", 0.3)
    >>> described.settings
    {'eps': '0.3'}
    """

    settings: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    generators: dict[str, torch.Generator] = field(default_factory=dict)
    _within: list[Any] = field(default_factory=list)  # what is being described: ends circles

    def add(self, name: str, value: Any) -> None:
        """Describe a thing under a name, and all that is in it under longer ones."""
        value = value.item() if isinstance(value, np.generic) else value  # NumPy's numbers
        if isinstance(value, PLAIN):
            self.settings[name] = value if isinstance(value, str) else repr(value)
        elif isinstance(value, Tensor | np.ndarray):
            self.settings[name] = _numbers(value)
        elif isinstance(value, torch.Generator):
            self.settings[name] = f"generator of seed {value.initial_seed()}"
            self.generators[name] = value
        elif isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
            raise ValueError(
                f"{name} is a {type(value).__name__}, whose state a checkpoint cannot hold: draw "
                "from a torch.Generator"
            )
        elif isinstance(value, PurePath | ModuleType | torch.device):
            pass  # where a run is kept, and on what it is computed, may change
        elif len(self._within) >= DEPTH or any(value is outer for outer in self._within):
            self.settings[name] = type(value).__name__
        else:
            self._within.append(value)
            self._add_parts(name, value)
            self._within.pop()

    def _add_parts(self, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            self._add_all(name, value)
        elif isinstance(value, list | tuple | set | frozenset):
            if all(isinstance(part, PLAIN) for part in value):
                ordered = isinstance(value, list | tuple)
                self.settings[name] = repr(list(value) if ordered else sorted(value, key=repr))
            else:
                self._add_all(name, dict(enumerate(value)))
        elif isinstance(value, partial):
            self.add(name, value.func)
            self._add_all(name, dict(enumerate(value.args)) | value.keywords)
        elif isinstance(value, MethodType):
            self.add(name, value.__func__)
            self.add(f"{name}'s self", value.__self__)
        elif isinstance(value, FunctionType):
            self._add_function(name, value)
        elif callable(value) and isinstance(getattr(value, "__name__", None), str):
            self.settings[name] = value.__name__  # a class, or a function that is not Python's
        elif isinstance(value, nn.Module):
            self._add_network(name, value)
        elif isinstance(value, Optimizer):
            self.settings[name] = type(value).__name__
            for i, group in enumerate(value.param_groups):
                self.settings[f"{name}[{i}]"] = f"{len(group['params'])} parameters"
                self._add_options(f"{name}[{i}]", group, "params", *HOW_FAST)
        elif isinstance(value, LRScheduler):
            self.settings[name] = type(value).__name__
            self._add_options(name, vars(value), "optimizer")
        else:
            self._add_object(name, value)

    def _add_all(self, name: str, parts: Mapping[Any, Any]) -> None:
        for key, part in parts.items():
            self.add(f"{name}[{key}]" if isinstance(key, int) else f"{name}'s {key}", part)

    def _add_options(self, name: str, options: Mapping[str, Any], *left_out: str) -> None:
        inner = Fingerprint(_within=self._within)
        for key, option in options.items():
            if key not in left_out:
                inner.add(f"{name}.{key}", option)
        self.options |= inner.settings | inner.options
        self.generators |= inner.generators

    def _add_network(self, name: str, network: nn.Module) -> None:
        for path, layer in network.named_modules():
            key = f"{name}.{path}" if path else name
            self.settings[key] = type(layer).__name__
            numbers = {k: v for k, v in vars(layer).items() if not k.startswith("_")}
            self._add_options(key, numbers, "training")
            if _is_own(type(layer)):
                self.add(f"{key}'s forward", type(layer).forward)
        for path, weights in network.state_dict().items():
            self.add(f"{name}{INITIAL}{path}", weights)

    def _add_object(self, name: str, value: Any) -> None:
        own = getattr(value, "settings", None)
        if isinstance(own, Mapping):
            own = dict(own)
            self.settings[name] = str(own.pop("name", type(value).__name__))
            self._add_all(name, own)
            for i, generator in enumerate(getattr(value, "generators", ())):
                self.add(f"{name}'s generators[{i}]", generator)
            return
        self.settings[name] = type(value).__name__
        if type(value).__module__.partition(".")[0] == "torch":
            self._add_options(name, getattr(value, "__dict__", {}))
        else:
            self._add_all(name, getattr(value, "__dict__", {}))
        if callable(value) and _is_own(type(value)):
            self.add(f"{name}'s call", type(value).__call__)

    def _add_function(self, name: str, function: FunctionType) -> None:
        self.settings[name] = function.__qualname__
        own, code = _is_own(function), function.__code__
        if own:
            self.settings[f"{name}'s code"] = f"CRC-32 {_checksum_of(code, function.__doc__):08x}"
            defaults = (function.__defaults__ or ()), (function.__kwdefaults__ or {})
            self._add_all(f"{name}'s defaults", dict(enumerate(defaults[0])) | defaults[1])
            for variable in sorted(_names(code) & function.__globals__.keys()):
                value = function.__globals__[variable]
                if not isinstance(value, type | list | dict | set | nn.Module):  # these grow
                    self.add(f"{name}'s {variable}", value)
            self._add_all(name, vars(function))
        if own or "<" in function.__qualname__:
            for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
                if cell != CellType():  # not an empty one
                    self.add(f"{name}'s {variable}", cell.cell_contents)


def fingerprint(**things: Any) -> Fingerprint:
    """The fingerprint of named things.

    >>> from functools import partial
    >>> fingerprint(attack=partial(checksum, steps=3)).settings
    {'attack': 'checksum', "attack's steps": '3'}

    Raises ValueError for a NumPy or Python generator, whose state a checkpoint cannot hold.
    """
    found = Fingerprint()
    for name, thing in things.items():
        found.add(name, thing)
    return found


def differences(was: Fingerprint, now: Fingerprint) -> list[str]:
    """What changed, the outermost alone: of another update it is not told that its k is another.

    >>> differences(fingerprint(k=2, rho=0.1), fingerprint(k=3, rho=0.1))
    ['k was 2, is 3']
    """
    common = [name for name in was.options if name in now.options]
    pairs = [(was.settings, now.settings, name) for name in was.settings | now.settings]
    pairs += [(was.options, now.options, name) for name in common]
    pairs.sort(key=lambda pair: INITIAL in pair[2])  # weights follow from what is told before
    changed: list[str] = []
    told: list[str] = []
    for old, new, name in pairs:
        one, other = old.get(name, "missing"), new.get(name, "missing")
        if one != other and not any(name.startswith((f"{c}'", f"{c}.", f"{c}[")) for c in changed):
            changed.append(name)
            told.append(f"{name} was {_short(one)}, is {_short(other)}")
    return told if len(told) <= MOST else [*told[:MOST], f"and {len(told) - MOST} more"]


def _numbers(array: Tensor | np.ndarray) -> str:
    tensor = torch.as_tensor(array)
    if tensor.numel() == 1:
        return str(tensor.tolist())
    return f"{str(tensor.dtype)[6:]} {list(tensor.shape)} CRC-32 {checksum(tensor):08x}"


def _is_own(thing: type | FunctionType) -> bool:
    """Whether the user wrote it, and may change it between two runs: no library's."""
    top = thing.__module__.partition(".")[0] if thing.__module__ else ""
    file = getattr(sys.modules.get(thing.__module__), "__file__", None) or ""
    library = top in ("lib", "experiments", "torch") or top in sys.stdlib_module_names
    return top == "__main__" or not (library or "site-packages" in file)


def _checksum_of(code: CodeType, doc: str | None = None) -> int:
    """Of what a function computes: not of its place, its lines or its docstring."""
    value = zlib.crc32(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            value = zlib.crc32(str(_checksum_of(constant)).encode(), value)
        elif isinstance(constant, frozenset):
            value = zlib.crc32(repr(sorted(map(repr, constant))).encode(), value)
        elif constant is not None and constant != doc:
            value = zlib.crc32(repr(constant).encode(), value)
    return value


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:50]}... (CRC-32 {zlib.crc32(text.encode()):08x})"
