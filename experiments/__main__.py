"""``python -m experiments NAME``: run an experiment and write its record.

A run that was stopped goes on from its checkpoints in ``experiments/runs`` when it is started
again with the same settings.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import torch

from lib import records

NAMES = {"wgan-points": "four games on the eight Gaussians, scored by exact W1 (slide 39)"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__.splitlines()[0],
        epilog="\n".join(f"{name}: {text}" for name, text in NAMES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (5)")
    parser.add_argument("--device", default="cpu", help="where to train (cpu)")
    parser.add_argument("--out", type=Path, default=records.FOLDER, help="the record's folder")
    parser.add_argument(
        "--runs", type=Path, default=Path(__file__).parent / "runs", help="the checkpoints' folder"
    )
    chosen = parser.parse_args(arguments)
    if chosen.seeds < 1:
        parser.error(f"--seeds must be >= 1, got {chosen.seeds}")
    try:
        torch.zeros(1, device=chosen.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {chosen.device} is not at hand: {str(error).splitlines()[0]}")
    torch.set_num_threads(1)
    experiment = import_module(f"experiments.{chosen.name.replace('-', '_')}")
    settings = experiment.settings(chosen.seeds, chosen.device)
    results = experiment.run(chosen.seeds, chosen.device, chosen.runs / chosen.name)
    print(f"The record is at {records.save(chosen.name, settings, results, chosen.out)}")


if __name__ == "__main__":
    main()
