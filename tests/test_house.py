"""The house: the names that others rely on, the order of the wings, what is private, and sizes.

What a rule asks is written once, in a function that takes the root of a tree and returns its
offences, a line each; every rule is tried on a small tree with a planted offence too.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the ground: a wing imports wings of lower floors, or of its own where no circle arises.
FLOORS = (
    ("checks",),
    ("runs", "models", "balls", "transport", "games"),
    ("data", "attacks", "lipschitz"),
    ("danskin", "fairness"),
    ("training", "gan", "sharpness"),
    ("pages",),
)
FLOOR = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
MODULE_LINES, FUNCTION_LINES = 250, 60
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}  # public, whatever they begin with

# What checks from outside import, and from where: nothing on this list moves.
CONTRACT = {
    "lib.balls": "LInf L2 L1",
    "lib.attacks": "loss_of fgsm pga mm_step attack robust_accuracy",
    "lib.danskin": "directional_derivative min_norm_point descent_direction",
    "lib.training": "fit erm adversarial danskin sharpness_aware ball_stability",
    "lib.fairness": "ClassFocusedSampler classwise_accuracy",
    "lib.transport": "wasserstein kantorovich_potentials",
    "lib.lipschitz": "spectral_norm lipschitz_bound gradient_penalty clip_weights_",
    "lib.gan": "train_wgan train_gan js_divergence",
    "lib.games": "gradient_descent_ascent extragradient optimistic_gradient",
    "lib.data": "digits mnist cifar10 retina fundus_phantoms Images",
}
NAMES = [(module, name) for module, names in CONTRACT.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{m}.{n}" for m, n in NAMES])
def test_the_names_that_others_rely_on_are_where_they_were(module, name):
    assert callable(getattr(importlib.import_module(module), name))


# The rules


class Import(NamedTuple):
    name: str  # in full: lib.balls.LInf
    line: int
    alias: str  # what it is called from then on


class Source(NamedTuple):
    module: str
    path: Path
    lines: list[str]
    tree: ast.Module

    def at(self, line: int) -> str:
        return f"{self.path.name}, line {line}" if line else self.path.name


def wing(name: str) -> str:
    return name.split(".")[1] if name.startswith("lib.") else ""


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in NAMED_TUPLE


def code_of(path: Path) -> str:
    """The Python of a module, or of a page's code cells, line by line where it stands."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    lines, code = [], False
    for line in text.split("\n"):
        fence = line.startswith("```")
        keep = code and not fence and not re.match(r":\w[\w-]*:", line)
        lines.append(line if keep else "")
        code = line.startswith("```{code-cell}") or (code and not fence)
    return "\n".join(lines)


def sources(root: Path, folder: str = "lib", kind: str = "py") -> dict[str, Source]:
    found = {}
    for path in sorted((root / folder).rglob(f"*.{kind}")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        code = code_of(path)
        found[name] = Source(name, path, code.splitlines(), ast.parse(code))
    return found


def imports(source: Source) -> Iterator[Import]:
    """Wherever they stand: at the top, in a function, or for the types only."""
    package = (
        source.module if source.path.name == "__init__.py" else source.module.rpartition(".")[0]
    )
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                alias = name.asname or name.name.partition(".")[0]
                yield Import(name.name, node.lineno, alias)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            origin = importlib.util.resolve_name(origin, package)
            for name in node.names:
                yield Import(f"{origin}.{name.name}", node.lineno, name.asname or name.name)


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"a circle: {' <- '.join(error.args[1])}"]
    return []


def order_offences(root: Path) -> list[str]:
    """Imports that go up or out of lib, wings on no floor, circles of modules or of wings."""
    known = sources(root)
    offences, modules, wings = [], {}, {}
    for source in known.values():
        here = wing(source.module)
        if here and here not in FLOOR:
            offences.append(f"{source.at(0)}: the wing {here} is on no floor")
        for found in imports(source):
            if (root / found.name.partition(".")[0]).is_dir() and not found.name.startswith("lib"):
                offences.append(f"{source.at(found.line)}: lib imports {found.name}")
            there = wing(found.name)
            if not there:
                continue
            target = found.name
            while target not in known and "." in target:
                target = target.rpartition(".")[0]
            modules.setdefault(source.module, set()).add(target)
            if here and here != there:
                wings.setdefault(here, set()).add(there)
                if FLOOR.get(there, 0) > FLOOR.get(here, 0):
                    offences.append(f"{source.at(found.line)}: {here} imports {there}, above it")
    return offences + circle(modules) + circle(wings)


def privacy_offences(root: Path) -> list[str]:
    """Names with an underscore that another wing, a page or an experiment uses.

    A test may use the private files of one wing, the one that it tests. An attribute ``x._y`` is an
    offence in a wing where another defines ``_y`` and it does not; elsewhere if x comes from lib.
    """
    offences = []
    own: dict[str, set[str]] = {}
    for source in sources(root).values():
        own.setdefault(wing(source.module), set()).update(defined(source.tree))
    for source in sources(root).values():
        here = wing(source.module)
        others = set().union(*(names for name, names in own.items() if name != here))
        for name, line in private_uses(source):
            if wing(name) not in ("", here) or name in others - own[here]:
                offences.append(f"{source.at(line)}: {here} uses {name}")
    for folder in ("experiments", "benchmarks", "book/_ext", "tools", "lecture11"):
        kind = "md" if folder == "lecture11" else "py"
        for source in sources(root, folder, kind).values():
            used = [(name, line) for name, line in private_uses(source) if wing(name)]
            offences += [f"{source.at(line)}: uses {name}" for name, line in used]
    for source in sources(root, "tests").values():
        wings = sorted({wing(name) for name, _ in private_uses(source)} - {""})
        if len(wings) > 1:
            offences.append(f"{source.at(0)}: uses what is private in {' and '.join(wings)}")
    return offences


def defined(tree: ast.Module) -> set[str]:
    """The private names of methods and attributes, of classes and of their objects."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                parts = [*getattr(member, "targets", []), getattr(member, "target", member)]
                names |= {getattr(part, "id", getattr(part, "name", "")) for part in parts}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if private(name)}


def private_uses(source: Source) -> Iterator[tuple[str, int]]:
    """Private names that are imported from lib (in full), and private attributes of other objects.

    An attribute of what was imported from lib is given in full as well, any other by its name.
    """
    aliases = {}
    for found in imports(source):
        if found.name.startswith("lib."):
            aliases[found.alias] = found.name
            if any(map(private, found.name.split("."))):
                yield found.name, found.line
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Attribute) or not private(node.attr):
            continue
        base = ast.unparse(node.value)
        root, _, rest = base.partition(".")
        if root in aliases:
            base = f"{aliases[root]}.{rest}".rstrip(".")
        if base not in ("self", "cls", "super()"):
            yield (f"{base}.{node.attr}" if base.startswith("lib.") else node.attr), node.lineno


def size_offences(root: Path) -> list[str]:
    offences = []
    for source in sources(root).values():
        if len(source.lines) > MODULE_LINES:
            offences.append(f"{source.at(0)}: {len(source.lines)} lines, at most {MODULE_LINES}")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min(n.lineno for n in (node, *node.decorator_list))
                lines = node.end_lineno - first + 1
                if lines > FUNCTION_LINES:
                    where = f"{source.at(node.lineno)}: {node.name}"
                    offences.append(f"{where} has {lines} lines, at most {FUNCTION_LINES}")
    return offences


def encoding_offences(root: Path) -> list[str]:
    """Text files read or written in the encoding of whoever runs it: it fails in the C locale."""
    offences = []
    for folder in ("lib", "tests", "experiments", "benchmarks", "book/_ext", "tools"):
        for source in sources(root, folder).values():
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Call) and opens_text(node):
                    offences.append(f"{source.at(node.lineno)}: name the encoding")
    return offences


def opens_text(call: ast.Call) -> bool:
    named = any(keyword.arg in ("encoding", None) for keyword in call.keywords)
    if isinstance(call.func, ast.Attribute):
        positional = {"read_text": 1, "write_text": 2}.get(call.func.attr, 0)
        return len(call.args) < positional and not named
    modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    binary = any("b" in str(getattr(mode, "value", "b")) for mode in modes)
    return getattr(call.func, "id", "") == "open" and not named and not binary


RULES = (order_offences, privacy_offences, size_offences, encoding_offences)


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_rules(rule):
    offences = rule(ROOT)
    assert not offences, "\n".join(["", *offences])


# Planted offences

HOUSE = {
    "lib/__init__.py": "",
    "lib/balls.py": "def project(v): return v\nclass Ball:\n    def _lmo(self): return self._x",
    "lib/attacks/__init__.py": "from lib.attacks._search import search",
    "lib/attacks/_search.py": "from lib.balls import Ball\ndef search(b): return _worst(b)\n"
    "def _worst(b): return b",
    "lib/pages.py": "from lib import attacks\nfrom collections import Counter",
    "experiments/run.py": "from lib.attacks import search",
    "tests/test_attacks.py": "from lib.attacks import _search\n_search._worst(1)",
    "tests/test_pages.py": "import lib.pages\nlib.pages.attacks.search(1)",
    "lecture11/01-page.md": "Text\n```{code-cell} ipython3\n:tags: [hide]\n\n"
    "from lib import attacks\n```\n\n```python\nattacks._not_a_cell\n```",
}


def planted(root: Path, **files: str) -> Path:
    for name, text in {**HOUSE, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("rule", RULES)
def test_a_small_house_in_order_passes(rule, tmp_path):
    assert rule(planted(tmp_path)) == []


def lines(count: int) -> str:
    return "\n".join(f"    x = {i}" for i in range(count))


OFFENCES = [
    (order_offences, "lib/balls.py", "from lib import pages", "line 1: balls imports pages, above"),
    (order_offences, "lib/balls.py", "import lib.attacks", "balls imports attacks, above it"),
    (
        order_offences,
        "lib/balls.py",
        "def f():\n    from lib.pages import x",
        "line 2: balls imports",
    ),
    (
        order_offences,
        "lib/attacks/_new.py",
        "from ..pages import x",
        "attacks imports pages, above",
    ),
    (order_offences, "lib/balls.py", "from experiments import run", "lib imports experiments.run"),
    (order_offences, "lib/kernels.py", "", "kernels.py: the wing kernels is on no floor"),
    (
        order_offences,
        "lib/attacks/_search.py",
        "from lib.attacks import fgsm",
        "a circle: lib.attacks",
    ),
    (order_offences, "lib/data.py", "from lib import lipschitz", None),
    (
        privacy_offences,
        "lib/pages.py",
        "from lib.attacks._search import search",
        "pages uses lib.att",
    ),
    (
        privacy_offences,
        "lib/pages.py",
        "from lib.attacks import _search",
        "uses lib.attacks._search",
    ),
    (privacy_offences, "lib/pages.py", "import lib.attacks as a\na._search", "lib.attacks._search"),
    (
        privacy_offences,
        "lib/pages.py",
        "def f(ball): return ball._lmo()",
        "line 1: pages uses _lmo",
    ),
    (
        privacy_offences,
        "lib/pages.py",
        "def f(self, b):\n    b._lmo.y = 1",
        "line 2: pages uses _lmo",
    ),
    (privacy_offences, "lib/pages.py", "def f(t): return t._replace(x=1)", None),
    (privacy_offences, "lib/pages.py", "def f(t): return t._worst", None),  # no attribute of ours
    (privacy_offences, "lib/pages.py", "def f(t): return t.__class__", None),
    (
        privacy_offences,
        "experiments/run.py",
        "import lib.attacks\nlib.attacks._search",
        "run.py, line 2",
    ),
    (
        privacy_offences,
        "experiments/run.py",
        "from lib.balls import Ball\nBall._lmo",
        "lib.balls.Ball._l",
    ),
    (
        privacy_offences,
        "lecture11/02.md",
        "```{code-cell}\nfrom lib.a import _b\n```",
        "02.md, line 2",
    ),
    (
        privacy_offences,
        "tests/test_attacks.py",
        "from lib.a import _x\nfrom lib.b import _y",
        "a and b",
    ),
    (size_offences, "lib/balls.py", "x = 1\n" * 251, "balls.py: 251 lines, at most 250"),
    (size_offences, "lib/balls.py", "x = 1\n" * 250, None),
    (
        size_offences,
        "lib/balls.py",
        "@f\ndef g():\n" + lines(59),
        "line 2: g has 61 lines, at most 60",
    ),
    (size_offences, "lib/balls.py", "def g():\n" + lines(59), None),
    (encoding_offences, "tests/test_x.py", "p.read_text()", "test_x.py, line 1: name the encoding"),
    (encoding_offences, "experiments/run.py", "p.write_text(text)", "run.py, line 1: name the"),
    (encoding_offences, "lib/balls.py", "def f():\n    open(p, 'a')", "balls.py, line 2: name the"),
    (encoding_offences, "tools/a.py", "open(p, mode='r')", "a.py, line 1: name the encoding"),
    (encoding_offences, "tools/a.py", "open(p, 'rb'), open(p, mode='wb'), open(p, mode)", None),
    (encoding_offences, "tools/a.py", "open(p, encoding='utf-8'), p.read_text('utf-8')", None),
    (
        encoding_offences,
        "tools/a.py",
        "tar.open(p), p.read_bytes(), p.write_text(x, 'utf-8')",
        None,
    ),
    (size_offences, "lib/balls.py", "class C:\n  async def g():\n" + lines(60), "g has 61 lines"),
]


@pytest.mark.parametrize(("rule", "name", "text", "said"), OFFENCES)
def test_a_planted_offence_is_told_and_its_limit_is_not(rule, name, text, said, tmp_path):
    planted(tmp_path, **{name: text})
    told = rule(tmp_path)
    if said is None:
        assert told == []
    else:
        assert any(said in line for line in told), told


def test_two_wings_of_a_floor_in_a_circle_are_told(tmp_path):
    planted(
        tmp_path, **{"lib/data.py": "import lib.lipschitz", "lib/lipschitz.py": "import lib.data"}
    )
    assert {told.partition(":")[0] for told in order_offences(tmp_path)} == {"a circle"}


# What is installed, and what is handed out


def test_an_installed_wheel_holds_every_file_of_lib(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "lib", source / "lib", ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-text"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    out.mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [wheel] = out.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "lib").rglob("*") if path.is_file()]
    here = {p.relative_to(ROOT).as_posix() for p in files if "__pycache__" not in p.parts}
    assert inside == here


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """What a module hands out: functions, classes, and what its public modules hand out."""
    listed = getattr(module, "__all__", None)
    names = listed or [name for name in vars(module) if not name.startswith("_")]
    for name in names:
        value = getattr(module, name)
        if inspect.ismodule(value):
            if listed:
                yield from public(value)
        elif listed or getattr(value, "__module__", "") == module.__name__:
            yield f"{module.__name__}.{name}", value


def needs_example(value: object) -> bool:
    """Functions, and classes with a method of their own that a user calls."""
    if inspect.isclass(value) and not issubclass(value, BaseException | tuple):
        return any(inspect.isfunction(f) for n, f in vars(value).items() if not n.startswith("_"))
    return inspect.isfunction(value)


def has_example(value: object) -> bool:
    parts = [value, *vars(value).values()] if inspect.isclass(value) else [value]
    return any(">>> " in (inspect.getdoc(part) or "") for part in parts)


@pytest.mark.parametrize("name", FLOOR)
def test_every_public_function_of_a_wing_has_an_example(name):
    handed = dict(public(importlib.import_module(f"lib.{name}")))
    lacking = [n for n, value in handed.items() if needs_example(value) and not has_example(value)]
    assert handed and not lacking, f"without a >>> example: {', '.join(lacking)}"


def test_the_map_of_lib_names_every_wing_and_no_other():
    import lib

    named = re.findall(r"^``(\w+)``", textwrap.dedent(lib.__doc__), re.MULTILINE)
    there = {path.stem for path in (ROOT / "lib").iterdir()} - {"__init__", "__pycache__"}
    assert sorted(named) == sorted(there) == sorted(FLOOR)
