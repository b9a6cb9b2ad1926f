"""What a training of generator and critic is refused for, before its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lib.checks import check_tensor

Network = Callable[[Tensor], Tensor]
OptimizerOf = Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer]

# What may stand between a sigmoid and what a discriminator returns, and hides nothing of it.
_SHAPES = ("View", "Squeeze", "Unsqueeze", "Reshape", "Select", "Slice", "Clamp", "ToCopy", "Clone")


def check_samples(name: str, a: Tensor, like: Tensor | None = None) -> None:
    """ValueError for samples that are not [N, ...], finite floats, of the shape of others."""
    if not isinstance(a, Tensor):
        raise ValueError(f"{name} must be a tensor [N, ...], got {type(a).__name__}")
    check_tensor(name, a)
    if a.dim() < 2:
        raise ValueError(
            f"{name} must be [N, ...], got {list(a.shape)}: numbers are [N, 1], {name}[:, None]"
        )
    if not len(a):
        raise ValueError(f"{name} samples must be >= 1, got {list(a.shape)}")
    if not a.is_floating_point():
        raise ValueError(
            f"{name} must be floats, got {a.dtype}: convert it, pixels as in {name}.float() / 255"
        )
    if not torch.isfinite(a).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    if like is not None and a.shape[1:] != like.shape[1:]:
        raise ValueError(f"{name} is {list(a.shape)}, and real {list(like.shape)}: they must agree")


def check_noise(omega: Tensor, n: int, like: Tensor | None = None) -> Tensor:
    """What noise(n) returned, where it is [n, ...] as before; else ValueError."""
    if not isinstance(omega, Tensor) or omega.dim() < 1 or len(omega) != n:
        got = list(omega.shape) if isinstance(omega, Tensor) else type(omega).__name__
        raise ValueError(f"noise({n}) must return a tensor [{n}, ...], got {got}")
    if like is None and omega.is_floating_point() and not torch.isfinite(omega).all():
        raise ValueError(f"noise({n}) must be finite, got NaN or infinity")
    if like is not None and (omega.shape[1:], omega.dtype) != (like.shape[1:], like.dtype):
        raise ValueError(
            f"noise({n}) returned {list(omega.shape)} {omega.dtype}, after {list(like.shape)} "
            f"{like.dtype}: its shape and type must stay"
        )
    return omega


def optimizer_of(of: OptimizerOf, name: str, network: nn.Module) -> Optimizer:
    """The optimizer of a network, made of the parameters that are trained if it is a function."""
    if isinstance(of, Optimizer):
        return of
    optimizer = of([p for p in network.parameters() if p.requires_grad])
    check_optimizer(optimizer, name, network)
    return optimizer


def check_optimizer(of: OptimizerOf, name: str, network: nn.Module) -> None:
    """ValueError for what is neither an optimizer of this network nor a function that makes one."""
    if not isinstance(of, Optimizer):
        if callable(of):
            return
        raise ValueError(
            f"{name}_optimizer must be an optimizer, or a function of the parameters that makes "
            f"one, got {of!r}"
        )
    known = {id(p) for p in network.parameters()}
    held = [p for group in of.param_groups for p in group["params"]]
    strange = sum(id(p) not in known for p in held)
    if strange:
        raise ValueError(
            f"{name}_optimizer holds {strange} parameters that are not the {name}'s: make it of "
            f"{name}.parameters()"
        )


def check_networks(
    networks: Mapping[str, nn.Module],
    in_precision: Callable[[Network], Network],
    real: Tensor,
    omega: Tensor,
    logits: bool,
) -> None:
    """ValueError where "generator", "critic", real samples and noise do not fit.

    Tries both networks on two samples, in evaluation mode and in the precision that they will be
    trained in. logits: refuse a critic that ends in a sigmoid.
    """
    generator, critic = (in_precision(networks[name]) for name in ("generator", "critic"))
    with _evaluating(*networks.values()), torch.enable_grad():
        omega = omega[:2].to(real.device, copy=True)
        fake = _tried("generator", generator, "noise", omega).detach()
        if fake.shape[1:] != real.shape[1:] or len(fake) != len(omega):
            raise ValueError(
                f"the generator makes {list(fake.shape)} of {len(omega)} noises, real is "
                f"{list(real.shape)}: both must be samples of one shape"
            )
        if fake.dtype != real.dtype:
            raise ValueError(
                f"the generator makes {fake.dtype}, real is {real.dtype}: convert one of them, "
                f"as in real.to({fake.dtype})"
            )
        both = torch.cat([real[:1], fake])
        numbers = _tried("critic", critic, "real", both)
    check_numbers(numbers, len(both))
    ended = _last_operation(numbers)
    if logits and "Sigmoid" in ended:
        raise ValueError(
            f"the discriminator must return logits, and ends in {ended}: leave the sigmoid out"
        )


def check_numbers(numbers: Tensor, n: int) -> None:
    """ValueError for what a critic returned for n samples, where it is not one number for each."""
    if numbers.shape[:1] != (n,) or numbers.numel() != n:
        raise ValueError(
            f"the critic must return one number a sample, [n] or [n, 1], got "
            f"{list(numbers.shape)} for {n} samples"
        )


def _tried(who: str, network: Network, name: str, a: Tensor) -> Tensor:
    """What a network returns for a, a finite float tensor with a gradient; else ValueError."""
    try:
        out = network(a)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"the {who} cannot take {name} {list(a.shape)} of {a.dtype}: "
            f"{str(error).splitlines()[0]}: give {name} the shape and type of its first layer"
        ) from error
    if not isinstance(out, Tensor) or not out.is_floating_point():
        got = out.dtype if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"the {who} must return a float tensor, got {got}")
    if not torch.isfinite(out).all():
        raise ValueError(f"the {who} returns NaN or infinity before any step: check its weights")
    if not out.requires_grad:
        raise ValueError(f"what the {who} returns has no gradient: no detach or no_grad inside it")
    return out


def _last_operation(a: Tensor) -> str:
    """The name of the operation that made a, seen through what only changes its shape."""
    node = a.grad_fn
    while node and node.name().startswith(_SHAPES) and node.next_functions:
        node = node.next_functions[0][0]
    return node.name().removesuffix("Backward0") if node else ""


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode that it was in."""
    modes = {module: module.training for network in networks for module in network.modules()}
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
