"""One training on several processes: ``torchrun --nproc-per-node 2 -m experiments NAME``.

Every process holds the whole model and the whole data, and draws the same random numbers. Of each
minibatch it computes its share, and the gradients are averaged, so that up to rounding the run is
that of one process, whatever their number. (An attack that ``lib.training.adversarial`` gives a
generator draws on its own in each process.) Without torchrun there is one process, and nothing
here does anything.

    started(device)     the process group, for the duration of a ``with``
    share(t)            this process's rows of a minibatch
    drawn(draw, shape)  its rows of what one process would draw for the whole minibatch
    mean_(tensors)      their mean over the processes, in place
    gathered(t)         all processes' rows, in order

Batch norm sees its process's share alone, unless ``nn.SyncBatchNorm`` replaces it (on GPUs).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessLost(RuntimeError):
    """Another process has ended; the message says how to go on."""


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0; the first one writes checkpoints and records."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def started(device: str = "cpu") -> Iterator[torch.device]:
    """Join the processes that torchrun started; yields this process's device.

    device: "cpu" (gloo) or "cuda" (nccl, one GPU a process). Without torchrun: as it is.
    Raises ValueError for more processes on a machine than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        yield torch.device(device)
        return
    mine = torch.device(device)
    if mine.type == "cuda":
        mine, there = torch.device("cuda", int(os.environ["LOCAL_RANK"])), torch.cuda.device_count()
        if mine.index >= there:
            raise ValueError(f"a GPU is needed for each process, there are {there}")
        torch.cuda.set_device(mine)
    dist.init_process_group("nccl" if mine.type == "cuda" else "gloo")
    try:
        yield mine
    finally:
        dist.destroy_process_group()


def check(**sizes: int) -> None:
    """ValueError for sizes that the processes cannot share evenly."""
    for name, size in sizes.items():
        if size % count():
            raise ValueError(f"{name} must be a multiple of the {count()} processes, got {size}")


def share(t: Tensor) -> Tensor:
    """This process's rows of t [n, ...], n / count() of them; ValueError if uneven."""
    check(rows=len(t))
    return t.chunk(count())[rank()]


def drawn(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | None,
) -> Tensor:
    """This process's rows, of this shape, of what one process would draw for all rows."""
    return share(draw((shape[0] * count(), *shape[1:]), generator=generator))


def child(generator: torch.Generator) -> torch.Generator:
    """A generator of this process's own, drawn from one that all have alike; alone, that one."""
    if count() == 1:
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed) + rank())


@torch.no_grad()
def mean_(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its mean over the processes."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _together():
        dist.all_reduce(flat)
    parts = (flat / count()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def gathered(t: Tensor) -> Tensor:
    """The rows of all processes, [n · count(), ...], the same number from each."""
    if count() == 1:
        return t
    parts = [torch.empty_like(t) for _ in range(count())]
    with _together():
        dist.all_gather(parts, t.contiguous())
    return torch.cat(parts)


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        with _together():
            dist.barrier()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"process {rank()} lost the others ({str(error).splitlines()[0]}): one of them has "
            "ended. The checkpoint remains; start the run again to go on from it"
        ) from error
