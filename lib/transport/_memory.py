"""Will it fit? Exact transport holds a matrix of all pairs of points, and its solver several."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import psutil

from lib.checks import check_counts

# Bytes for each pair of points: costs, plan, and the solver's copies and network.
SIMPLEX, ASSIGNMENT = 48, 24
LINE = 100  # for each point
NO_LIMIT = 2**62  # version 1 writes a number near 2^63 where there is none
GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_needed(n: int, m: int, d: int) -> int:
    """About how many bytes ``wasserstein`` takes for n against m points of equal weights in R^d.

    Proportional to n·m from two dimensions on, to n + m on the line. With weights, for a plan on
    the line and for ``kantorovich_potentials`` it is what the plane, d = 2, takes.

    >>> from lib.transport import memory_needed
    >>> memory_needed(4000, 4000, d=2) / 1e9, memory_needed(4000, 4000, d=3) / 1e9
    (0.768, 0.384)

    Raises ValueError for counts that are no whole numbers >= 1.
    """
    check_counts(n=n, m=m, d=d)
    if d == 1:
        return LINE * (n + m)
    return (ASSIGNMENT if d > 2 and n == m else SIMPLEX) * n * m


def memory_free() -> int:
    """Bytes that this process may still take: of the machine, and of its control group if less.

    A container's limit is its control group's (Linux, both versions); psutil knows the machine's.

    >>> from lib.transport import memory_free
    >>> memory_free() > 0
    True
    """
    return min(psutil.virtual_memory().available, *(max(left, 0) for left in _left_in_groups()))


def check_memory(needed: int, n: int, m: int) -> None:
    """MemoryError, with sizes and a remedy, if n against m points cannot fit."""
    free = memory_free()
    if needed > free:
        raise MemoryError(
            f"{n} against {m} points need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free: draw subsamples of both clouds"
        )


def _left_in_groups() -> list[float]:
    """What the limit of each group around this process leaves; infinity where there is none."""
    return [float("inf"), *(_left(*group) for group in _groups(OWN_GROUP, GROUPS))]


@cache
def _groups(own: Path, tree: Path) -> list[tuple[Path, bool]]:
    """The control groups around this process, which stays in them, and whether of version 2."""
    groups: list[tuple[Path, bool]] = []
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return groups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            second = not controllers  # version 2 has one tree, version 1 one for memory
            root = tree if second else tree / "memory"
            group = root / path.strip("/")
            while group.is_relative_to(root):  # a container may see its own group as the root
                groups.append((group, second))
                group = group.parent
    return groups


def _left(group: Path, second: bool) -> float:
    """``limit − used`` of one group, with the cached files that can be dropped not counted."""
    try:
        most = _read(group, "memory.max" if second else "memory.limit_in_bytes").strip()
        limit = float("inf") if most == "max" else int(most)
        if limit > NO_LIMIT:  # the other two take longer to read
            return float("inf")
        used = int(_read(group, "memory.current" if second else "memory.usage_in_bytes"))
        stat = dict(line.split() for line in _read(group, "memory.stat").splitlines())
    except (OSError, ValueError):  # not there, or not ours to read
        return float("inf")
    return limit - used + int(stat.get("inactive_file" if second else "total_inactive_file", 0))


def _read(group: Path, name: str) -> str:
    return (group / name).read_text(encoding="utf-8")
