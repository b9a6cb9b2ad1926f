"""A CUDA device for machines without one: what meets there is checked, what is computed is not.

Its tensors hold their values on the CPU and say that they are on another device, ``DEVICE``, with
``is_cuda``. As CUDA does, it refuses operations on its tensors and the CPU's together (but for
single numbers, copies, and indices from the CPU into its own tensors), random numbers from a
generator of the CPU, and NumPy::

    with Pretending():
        a = torch.ones(3, device=DEVICE)
        a + torch.ones(3)                   # Mixed
        a.cpu() + torch.ones(3)

Values are the CPU's, bit for bit, and so are torch's own random numbers. Not seen here: speed,
autocast, compilation, streams, several devices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class _Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())
DEVICE = torch.device("pretend", 0)

COPIES = {"aten::_to_copy", "aten::copy_"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Mixed(RuntimeError):
    """Tensors of two devices, or a tensor and a generator of another, in one operation."""


class Pretended(torch.Tensor):
    """A tensor on ``DEVICE``; ``held`` has its values."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @property
    def is_cuda(self) -> bool:
        return True

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy: use .cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.held})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # in a file it is as torch.load would map it
        return self.held.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Within it ``device=DEVICE`` and ``.to(DEVICE)`` make tensors on the device."""

    def __enter__(self) -> Pretending:
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self.before)
        super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; its results on the device if it was asked for there."""
    leaves, spec = tree_flatten((args, kwargs))
    name = operation._schema.name
    asked = kwargs.get("device")
    on_device = any(isinstance(leaf, Pretended) for leaf in leaves)
    if asked is not None:
        on_device = torch.device(asked).type == DEVICE.type
    _refuse_mixtures(name, leaves, on_device)
    of_held = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, Pretended)}
    args, kwargs = tree_unflatten([_to_cpu(leaf) for leaf in leaves], spec)
    results = operation(*args, **kwargs)

    def to_device(result: Any) -> Any:
        if not isinstance(result, torch.Tensor) or not on_device:
            return result
        if id(result) in of_held and of_held[id(result)].shape == result.shape:
            return of_held[id(result)]  # it was changed in place
        return Pretended(result)

    return tree_map(to_device, results)


def _to_cpu(leaf: Any) -> Any:
    if isinstance(leaf, Pretended):
        return leaf.held
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf


def _refuse_mixtures(name: str, leaves: list[Any], on_device: bool) -> None:
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    ours = [isinstance(tensor, Pretended) for tensor in tensors]
    cpu = [t for t, our in zip(tensors, ours, strict=True) if not our and t.dim() > 0]
    allowed = name in COPIES or (name in INDEXING and ours[0] and _are_indices(name, cpu, tensors))
    if any(ours) and cpu and not allowed:
        shapes = [(type(t).__name__, list(t.shape)) for t in tensors]
        raise Mixed(f"{name}: tensors of the device and of the CPU meet: {shapes}")
    for leaf in leaves:
        if isinstance(leaf, torch.Generator) and (leaf.device.type == DEVICE.type) != on_device:
            raise Mixed(f"{name}: a generator on {leaf.device} for tensors of another device")


def _are_indices(name: str, cpu: list[torch.Tensor], tensors: list[torch.Tensor]) -> bool:
    """Whether what is on the CPU is an index, and not what is put there."""
    values = tensors[-1] if name != "aten::index" else None
    return all(t is not values and not t.is_floating_point() for t in cpu)
