"""lib.transport beside POT and beside numpy's sort: one interleaved run, one thread.

``python benchmarks/transport.py [--json FILE]`` times, on Gaussian clouds of three seeds,

    clouds   ``wasserstein`` at n = 2,000 in the plane and in R^64, for q = 1 and 2, against POT's
             ``ot.solve``, with the cost matrix that ``ot.dist`` makes for it and without
    line     ``wasserstein`` of two samples of 100,000 numbers against numpy's sort of both
    large    4,000 against 4,000 points in R^64, q = 1, each method in a fresh process, with the
             greatest growth of the resident set (Linux)

and compares the values. Times are medians of the process's CPU time, so that other work on the
machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy looks

import numpy as np
import ot

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.transport import wasserstein

SEEDS = range(3)
GROUND = {1: "euclidean", 2: "sqeuclidean"}  # what ot.dist calls d and d²
MANY = 10  # runs in a row of what takes milliseconds
PIVOTS = 10**9  # as many as it takes: at its default of 10^6 ot.solve may stop early


def clouds(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """n points each of two Gaussians in R^d whose means are √d/2 apart."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)) + 0.5


def pot(x: np.ndarray, y: np.ndarray, q: int = 1) -> float:
    """W_q by ot.solve, its cost matrix included."""
    return ot.solve(ot.dist(x, y, metric=GROUND[q]), max_iter=PIVOTS).value ** (1 / q)


def cpu_seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each run, all taking turns; the first turn is to warm up."""
    turns = [{name: cpu_seconds(run) for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in runs}


def on_clouds(seed: int, d: int, q: int, repeats: int) -> dict[str, float]:
    x, y = clouds(seed, 2_000, d)
    cost = ot.dist(x, y, metric=GROUND[q])
    seconds = interleaved(
        {
            "ours": lambda: wasserstein(x, y, q),
            "ot.dist, ot.solve": lambda: pot(x, y, q),
            "ot.solve": lambda: ot.solve(cost, max_iter=PIVOTS),
        },
        repeats,
    )
    return seconds | {"difference": abs(wasserstein(x, y, q) / pot(x, y, q) - 1)}


def on_the_line(seed: int, repeats: int) -> dict[str, float]:
    x, y = (cloud[:, 0] for cloud in clouds(seed, 100_000, 1))
    return interleaved(
        {
            "sort": lambda: [(np.sort(x), np.sort(y)) for _ in range(MANY)],
            "q = 1": lambda: [wasserstein(x, y) for _ in range(MANY)],
            "q = 2": lambda: [wasserstein(x, y, 2) for _ in range(MANY)],
        },
        4 * repeats,
    )


def memory(field: str) -> int:
    """VmRSS, this process's bytes in memory, or VmHWM, the most that it ever had (Linux)."""
    found = re.search(
        rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")
    )
    return 1024 * int(found[1])


def alone(method: str, seed: int) -> None:
    """Print value, CPU seconds and growth in bytes of one large run: called in a new process."""
    run = {"ours": wasserstein, "ot.dist, ot.solve": pot}[method]
    run(*clouds(seed, 10, 64))  # loads what is loaded once
    x, y = clouds(seed, 4_000, 64)
    begin, before = time.process_time(), memory("VmRSS")
    value = run(x, y)
    print(json.dumps([value, time.process_time() - begin, memory("VmHWM") - before]))


def large(method: str, seed: int) -> list[float]:
    command = [sys.executable, __file__, "--alone", method, str(seed)]
    return json.loads(subprocess.check_output(command, text=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)  # used by large
    arguments = parser.parse_args()
    if arguments.alone:
        return alone(arguments.alone[0], int(arguments.alone[1]))
    figures: dict[str, dict[str, object]] = {"clouds": {}, "line": {}, "large": {}}

    print(f"numpy {np.__version__}, POT {ot.__version__}, one thread, CPU time\n")
    print(
        "2,000 against 2,000 points           ours  ot.dist, ot.solve  ratio  without cost   values"
    )
    for name, d in {"plane": 2, "R^64": 64}.items():
        for q in GROUND:
            for seed in SEEDS:
                f = on_clouds(seed, d, q, arguments.repeats)
                figures["clouds"][f"{name}, q = {q}, seed {seed}"] = f
                ours, both, solve = f["ours"], f["ot.dist, ot.solve"], f["ot.solve"]
                print(
                    f"  {name:6} q = {q}, seed {seed}    {ours:11.3f} s {both:16.3f} s "
                    f"{ours / both:6.2f} {ours / solve:13.2f} {f['difference']:9.0e}"
                )
    print(f"{'goal':59}<= 1.1\n")

    print("100,000 against 100,000 numbers      sort of both    q = 1   q = 2")
    for seed in SEEDS:
        f = figures["line"][f"seed {seed}"] = on_the_line(seed, arguments.repeats)
        ratios = "".join(f"{f[name] / f['sort']:8.2f}" for name in ("q = 1", "q = 2"))
        print(f"  seed {seed} {1e3 * f['sort'] / MANY:36.2f} ms  {ratios}")
    print(f"{'goal':51}<= 2    <= 2\n")

    print("4,000 against 4,000 points in R^64       time       memory   values")
    for seed in SEEDS:
        found = {method: large(method, seed) for method in ("ours", "ot.dist, ot.solve")}
        figures["large"][f"seed {seed}"] = found
        values = [value for value, _, _ in found.values()]
        for method, (_, seconds, growth) in found.items():
            print(
                f"  seed {seed}, {method:20} {seconds:12.1f} s {growth / 2**20:8.0f} MiB "
                f"{abs(values[0] / values[1] - 1):8.0e}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
