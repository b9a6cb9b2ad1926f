"""Change a module line by line and see whether a test fails: which mutants survive, and the score.

    python tools/mutants.py lib/balls              a wing
    python tools/mutants.py lib/balls/_box.py      one of its modules
    python tools/mutants.py lib/balls --sample 0   all mutants, not 150 drawn at random

mutmut makes the mutants and runs them, in a copy of the repository under _build/mutants. The tests
are those of the wing (TESTS) and the examples in its docstrings; of them a mutant runs those that
reach its function. mutmut leaves as it is what stands outside of functions and in decorated ones,
and we tell it to leave texts that stand on a line of their own: they are parts of messages. What a
test file computes when it is imported, and default values that are read from a signature, are
computed before the mutant is there: such a test does not see it.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_build" / "mutants"
PARTS = "lib", "tests", "experiments", "tools", "book", "pyproject.toml"  # what the tests read

KILLED = {"killed", "timeout", "segfault"}
TESTS = {  # tests/test_*.py, by wing; and the boundaries of all
    "attacks": "attacks cuda inputs",
    "balls": "balls inputs",
    "checks": "checks inputs*",
    "danskin": "danskin inputs_training",
    "data": "data mnist cifar10 phantoms saliency_retina inputs_elsewhere",
    "fairness": "fairness inputs_training",
    "games": "games inputs_elsewhere",
    "gan": "gan* cuda inputs_measures",
    "lipschitz": "lipschitz inputs_measures",
    "models": "models inputs_elsewhere",
    "pages": "exercises interactive plots inputs_elsewhere",
    "runs": "checkpoints fingerprints records session processes inputs_elsewhere",
    "sharpness": "sharpness inputs_training",
    "training": "training updates checkpoints inputs_training",
    "transport": "transport inputs_measures",
}


def main(path: str, sample: int, seed: int, processes: int) -> None:
    module = Path(path).with_suffix("") if path.endswith(".py") else Path(path)
    files = sorted(ROOT.glob(f"{module}.py")) or sorted(ROOT.glob(f"{module}/**/*.py"))
    if module.parts[:1] != ("lib",) or not files:
        sys.exit(f"{path!r} is no module of lib: name one, as in make mutants MODULE=lib/balls")
    wing = module.parts[1]
    prepare(wing, [str(file.relative_to(ROOT)) for file in files])
    os.chdir(FOLDER)
    drawn = draw([file.relative_to(ROOT) for file in files], sample, seed)
    command = [Path(sys.executable).with_name("mutmut"), "run", "--max-children", str(processes)]
    with open("log.txt", "w", encoding="utf-8") as log:
        print(f"{len(drawn)} mutants; mutmut's log is {FOLDER / 'log.txt'}", flush=True)
        run = subprocess.run([*command, *drawn], stdout=log, stderr=subprocess.STDOUT)
    if run.returncode:
        sys.exit(f"mutmut stopped, exit status {run.returncode}: look at the end of its log")
    report(set(drawn))


def prepare(wing: str, files: list[str]) -> None:
    """A copy of the repository and mutmut's settings, anew, so that no result is an old one's."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for part in (ROOT / name for name in PARTS):
        shutil.copy(part, FOLDER) if part.is_file() else shutil.copytree(part, FOLDER / part.name)
    tests = [
        str(test.relative_to(ROOT))
        for name in [*TESTS[wing].split(), "boundaries"]
        for test in sorted((ROOT / "tests").glob(f"test_{name}.py"))
    ]
    settings = {
        "source_paths": ["lib"],
        "only_mutate": files,
        "do_not_mutate_patterns": [r'^\s*r?"[^"]*"[,)]?$'],
        "also_copy": [*PARTS[1:]],
        "pytest_add_cli_args_test_selection": [*tests, *files],
        # Each mutant has a copy of its function's docstring: the examples are run once.
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-k", "not mutmut"],
        "process_isolation": "forkserver",  # torch is imported once, in a process of its own
        "timeout_constant": "2.0",
        "timeout_multiplier": "5.0",
    }
    config = configparser.ConfigParser()
    config["mutmut"] = {
        name: "\n".join(["", *value]) if isinstance(value, list) else value
        for name, value in settings.items()
    }
    with open(FOLDER / "setup.cfg", "w", encoding="utf-8") as file:
        config.write(file)


def draw(files: list[Path], sample: int, seed: int) -> list[str]:
    """The names of the mutants, all (sample 0) or some drawn at random."""
    from mutmut.mutation.file_mutation import mutate_file_contents
    from mutmut.utils.format_utils import get_mutant_name

    names = [
        get_mutant_name(file, name)
        for file in files
        for name in mutate_file_contents(str(file), file.read_text("utf-8")).mutant_names
    ]
    return random.Random(seed).sample(names, sample) if 0 < sample < len(names) else names


def report(drawn: set[str]) -> None:
    """A line for each mutant that survived: its module, line and change; then the scores."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code

    scores, lines = {}, []
    for meta in sorted(Path("mutants", "lib").rglob("*.py.meta")):
        path = meta.relative_to("mutants").with_suffix("")
        codes = {
            name: code
            for name, code in json.loads(meta.read_text("utf-8"))["exit_code_by_key"].items()
            if name in drawn
        }
        status = {name: status_by_exit_code[code] for name, code in codes.items()}
        lived = [name for name, how in status.items() if how not in KILLED]
        if codes:
            scores[str(path)] = len(codes) - len(lived), len(codes)
        for name in lived:
            diff = get_diff_for_mutant(name, path=path).splitlines()
            change = [line for line in diff if line[:1] in "+-" and line[:3] not in ("+++", "---")]
            where = f"{path}, {name.rpartition('.')[2]}, {status[name]}"
            lines.append(f"{where}: " + "  ".join(" ".join(line.split()) for line in change))
    scores["in all"] = [sum(column) for column in zip(*scores.values(), strict=True)]
    for path, (killed, of) in scores.items():
        lines.append(f"{path}: {killed} of {of} killed, {killed / of:.1%}")
    print("\n".join(lines))
    Path("survivors.txt").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", nargs="?", default="", help="lib/WING or lib/WING/MODULE.py")
    parser.add_argument("--sample", type=int, default=150, help="how many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=2, help="at a time")
    given = parser.parse_args()
    main(given.module, given.sample, given.seed, given.processes)
