"""``python -m experiments NAME --help``: run an experiment and write its record."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module

import tyro
from tyro.extras import subcommand_type_from_defaults

from experiments.running import RunError, run
from lib.data import DataError
from lib.runs import ProcessLost

MODULES = {
    "wgan-points": "wgan_points",
    "training-cifar10": "training_cifar10",
    "autoattack-cifar10": "autoattack_cifar10",
    "danskin-cifar10": "danskin_cifar10",
    "fairness-cifar10": "fairness_cifar10",
    "sam-cifar10": "sam_cifar10",
    "attacks-mnist": "attacks_mnist",
    "training-mnist": "training_mnist",
    "saliency-retina": "saliency_retina",
    "wgan-digits": "wgan_digits",
    "rates": "rates",
    "speed": "speed",
}

ERRORS = (RunError, DataError, OSError, ProcessLost)  # of what is outside an experiment


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line says; 0, or 1 after one line that says what is wrong."""
    modules = {name: import_module(f"experiments.{file}") for name, file in MODULES.items()}
    size = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    size.add_argument("--size", default="")
    size = size.parse_known_args(arguments)[0].size
    configs = {name: module.Config.of_size(size) for name, module in modules.items()}
    config = tyro.cli(
        subcommand_type_from_defaults(configs), prog="python -m experiments", args=arguments
    )
    [name] = [name for name, module in modules.items() if type(config) is module.Config]
    try:
        path = run(name, modules[name], config)
    except ERRORS as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: stopped; --resume goes on from here", file=sys.stderr)
        return 130
    if path:
        print(f"The record is at {path}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torchrun's, if a process has ended
    sys.exit(main())
