"""Every entry of book/errata.yml is complete; its program tells the slide's version from ours."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

ERRATA = Path(__file__).parent.parent / "book" / "errata.yml"
ENTRIES = yaml.safe_load(ERRATA.read_text(encoding="utf-8"))
PROVED = [entry for entry in ENTRIES if entry["tier"] != "misprint"]

ALWAYS = {"id", "tier", "slide", "written", "right"}
FIELDS = {  # of each tier, in the order of the page
    "answer": ALWAYS | {"row", "why", "program"},
    "assumption": ALWAYS | {"why", "program"},
    "misprint": ALWAYS,
}
SEEDS = range(10)
SOURCES = {"default_rng", "RandomState", "manual_seed", "seed"}  # they take the seed
UNSEEDED = {"rand", "randn", "randint", "randperm", "normal", "uniform"}  # of a module


def number(entry: dict) -> tuple[int, int]:
    slide, running = entry["id"].split(".")
    return int(slide), int(running)


def flaws(program: str) -> list[str]:
    """What keeps a program from telling the two versions apart; empty if it does.

    ``holds`` may not name the versions or return a constant; randomness comes from its argument
    ``seed``; and ``holds(slide)`` is False, ``holds(right)`` True, for ten seeds and all ``sizes``.
    """
    return static_flaws(ast.parse(program)) or dynamic_flaws(program)


def static_flaws(tree: ast.Module) -> list[str]:
    found = []
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if "holds" not in functions:
        return ["there is no function holds"]
    for node in ast.walk(functions["holds"]):
        if isinstance(node, ast.Name) and node.id in {"slide", "right"}:
            found.append(f"holds names {node.id}: it must not know which version it is given")
        if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
            found.append(f"holds reads {node.attr}: it must not know which version it is given")
        if isinstance(node, ast.Is | ast.IsNot):
            found.append("holds compares identities")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found += random_flaws(node)
    return found


def random_flaws(call: ast.Call) -> list[str]:
    inside = [ast.unparse(argument) for argument in call.args]
    keywords = {keyword.arg for keyword in call.keywords}
    if call.func.attr in SOURCES and not any("seed" in argument for argument in inside):
        return [f"{ast.unparse(call)}: a fixed seed"]
    of_a_module = ast.unparse(call.func.value) in {"np.random", "torch"}
    if call.func.attr in UNSEEDED and of_a_module and "generator" not in keywords:
        return [f"{ast.unparse(call)}: without a seed"]
    if call.func.attr == "rvs" and "random_state" not in keywords:
        return [f"{ast.unparse(call)}: without a seed"]
    return []


def dynamic_flaws(program: str) -> list[str]:
    names = {"__name__": "erratum"}
    exec(compile(program, "erratum", "exec"), names)
    if any(isinstance(names[version], bool) for version in ("slide", "right")):
        return ["a version is a truth value: it must be what the slide writes"]
    wanted = inspect.signature(names["holds"]).parameters
    cases = [{}]
    if "seed" in wanted:
        cases = [{"seed": seed} for seed in SEEDS]
    if "size" in wanted:
        cases = [{**case, "size": size} for case in cases for size in names["sizes"]]
    for case in cases:
        for version, expected in (("right", True), ("slide", False)):
            verdict = names["holds"](names[version], **case)
            if not isinstance(verdict, bool | np.bool_):
                return [f"holds returns {verdict!r}, no truth value"]
            if verdict != expected:
                return [f"holds({version}) is {verdict} {case or ''}".strip()]
    return []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_entry_has_the_fields_of_its_tier_and_no_others(entry):
    assert FIELDS[entry["tier"]] <= set(entry) <= FIELDS[entry["tier"]] | {"also", "look_for"}
    assert number(entry)[0] == entry["slide"] and 3 <= entry["slide"] <= 44
    texts = [entry[field] for field in ("written", "right", "why", "look_for") if field in entry]
    for text in [*texts, *entry.get("row", [])]:
        assert text.strip() and text.count("$") % 2 == 0, f"a formula is not closed: {text}"
    assert len(entry.get("row", [])) in (0, 2)
    also = entry.get("also", [])
    assert also == sorted(set(also)) and entry["slide"] not in also


def test_the_list_is_short_and_its_tiers_in_order():
    assert len(ENTRIES) <= 50
    assert len({entry["id"] for entry in ENTRIES}) == len(ENTRIES)
    order = [list(FIELDS).index(entry["tier"]) for entry in ENTRIES]
    assert order == sorted(order)
    for tier in ("assumption", "misprint"):  # the first tier has the worst first
        numbers = [number(entry) for entry in ENTRIES if entry["tier"] == tier]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_an_entry_quotes_the_slide(entry):
    assert entry["written"].count('"') >= 2


@pytest.mark.parametrize("entry", PROVED, ids=lambda entry: entry["id"])
def test_the_program_holds_for_the_right_version_and_fails_for_the_slides(entry):
    assert flaws(entry["program"]) == []


@pytest.mark.parametrize("entry", PROVED, ids=lambda entry: entry["id"])
def test_the_program_with_its_versions_exchanged_is_refused(entry):
    assert flaws(entry["program"] + "\nslide, right = right, slide\n")


def numbers() -> dict[str, list[str]]:
    """The numbers in the entries' reasons, computed here once more."""
    found = {}
    moved = stats.foldnorm(2.5, scale=2).mean()  # E |2 X - 5|
    found["28.1"] = [f"{2 / np.sqrt(np.pi):.4f}", f"{moved:.4f}"]
    value = [round(s + 10 * (s - 1) ** 2) for s in (1, 10, 100)]
    found["39.1"] = ["{}, {} and {:,}".format(*value), f"s = {1 + 1 / 20:.2f}"]
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    mixture = (p + q) / 2
    halves = [
        stats.entropy(p, m) / 2 + stats.entropy(q, n) / 2 for m, n in ((mixture,) * 2, (q, p))
    ]
    found["41.1"] = ["{:.4f} and {:.4f}".format(*halves)]
    g, t = 3.5, 3.5 / 50  # the l1 norm of the gradient, and t*
    found["15.5"] = [f"{t:.2f}", f"{g * t - 25 * t**2:.4f}", f"{g * t + 25 * t**2:.4f}"]
    found["15.6"] = [f"{t:.2f}", f"falls by {25 * 0.3**2 - g * 0.3:.1f}"]
    found["31.3"] = [f"{stats.chi2.pdf(1, df=1):.4f}"]
    s = np.linspace(0.5, 2, 300_001)
    found["21.2"] = [f"{((8 * s**2 / (1 + s**2) ** 2 - 1) / s).max():.4f}"]
    x = np.linspace(-1, 1, 201)
    largest = [w * (np.abs(x - c) + 0.5) ** 2 for w, c in ((4, 1), (1, -1))]
    mean = [(4 * (x + e - 1) ** 2 + (x + e + 1) ** 2) for e in (-0.5, 0.5)]  # convex: at an end
    least = x[sum(largest).argmin()], x[np.max(mean, axis=0).argmin()]
    found["6.3"] = ["{:.1f} and {:.1f}".format(*least)]
    found["33.3"] = [f"{np.sqrt(2 / np.pi) * np.pi / 8:.4f}"]
    f = np.polynomial.Polynomial([0, 0.45, -1.2, 1])
    found["11.4"] = [f"{min(f.deriv().roots()):.1f}", f"{f(0.3):.3f}", f"{f(1):.2f}"]
    found["8.8"] = [f"norm {abs(np.array([10, 0, 0])).sum()},", f"has {np.ones(3).sum():.0f}"]
    return found


@pytest.mark.parametrize("name", numbers())
def test_the_numbers_in_a_reason_are_right(name):
    [entry] = [entry for entry in ENTRIES if entry["id"] == name]
    for text in numbers()[name]:
        assert text in entry["why"], f"{text} is not in {entry['why']}"


def test_the_gradients_of_slide_44_are_right():
    [entry] = [entry for entry in ENTRIES if entry["id"] == "44.4"]
    names: dict = {}
    exec(entry["program"], names)
    x, h = np.ones(2), names["h"]
    at = {version: h * (x + names[version](x)) for version in ("slide", "right")}
    steps = 1e-5 * np.eye(2)
    value = [[(h * (u + names["slide"](u)) ** 2).sum() / 2 for u in (x + s, x - s)] for s in steps]
    through = [(above - below) / 2e-5 for above, below in value]
    for vector in (at["right"], at["slide"], through):
        assert "({:.4f}, {:.4f})".format(*vector) in entry["why"]


GOOD = """
    import numpy as np

    slide, right = -1, +1  # the sign of a step on -t^2 / 2

    def holds(sign, seed):
        t = np.random.default_rng(seed).normal()
        return (t + sign * 0.1 * -t) ** 2 < t**2
"""
PLANTED = {  # a change of GOOD, and what the checker says of it
    "a tautology": ("** 2 < t**2", "** 2 >= 0", "holds(slide) is True"),
    "a claim that never holds": ("** 2 < t**2", "** 2 < 0", "holds(right) is False"),
    "versions exchanged": ("slide, right = -1, +1", "slide, right = +1, -1", "holds(right) is"),
    "one seed only": ("< t**2", "< t**2 and seed == 0", "{'seed': 1}"),
    "one lucky draw": ("** 2 < t**2", "** 2 < t**2 or t < 0", "holds(slide) is True"),
    "a fixed seed": ("default_rng(seed)", "default_rng(0)", "a fixed seed"),
    "no seed": ("default_rng(seed)", "default_rng()", "a fixed seed"),
    "the global generator": ("default_rng(seed).normal()", "normal()", "without a seed"),
    "one size only": ("sign, seed):", "sign, size):\n    seed = size", "'size': 20"),
    "known by name": ("return", "return sign == right or", "holds names right"),
    "truth values": ("-1, +1", "False, True", "a version is a truth value"),
    "no verdict": (" < t**2", " - t**2", "no truth value"),
}


def planted(name: str) -> tuple[str, str]:
    old, new, complaint = PLANTED[name]
    program = textwrap.dedent(GOOD)
    assert program.count(old) >= 1
    if name == "one size only":
        program = "sizes = (10, 20)\n" + program.replace("< t**2", "< t**2 and size < 20")
    return program.replace(old, new), complaint


def test_the_checker_accepts_a_good_program():
    assert flaws(textwrap.dedent(GOOD)) == []


@pytest.mark.parametrize("name", PLANTED)
def test_the_checker_refuses(name):
    program, complaint = planted(name)
    assert any(complaint in flaw for flaw in flaws(program)), flaws(program)
