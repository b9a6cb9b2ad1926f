"""Every entry of book/errata.yml is complete, and its check runs green."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

ERRATA = Path(__file__).parent.parent / "book" / "errata.yml"
ENTRIES = yaml.safe_load(ERRATA.read_text(encoding="utf-8"))
CHECKED = [entry for entry in ENTRIES if "check" in entry]

REQUIRED = {"id", "slide", "kind", "written", "right", "why", "where"}
OPTIONAL = {"also", "check"}
KINDS = {"wrong", "assumption", "overstatement", "notation", "typo", "remark"}
PROVED = {"wrong", "assumption", "overstatement"}  # these must come with a check


def number(entry: dict) -> tuple[int, int]:
    slide, running = entry["id"].split(".")
    return int(slide), int(running)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_entry_has_all_fields_and_no_others(entry):
    assert REQUIRED <= set(entry) <= REQUIRED | OPTIONAL
    assert entry["kind"] in KINDS
    assert number(entry)[0] == entry["slide"]
    assert entry["where"] == f"slide-{entry['slide']}"
    for field in ("written", "right", "why"):
        assert entry[field].strip(), field
        assert entry[field].count("$") % 2 == 0, f"{field}: a formula is not closed"
    also = entry.get("also", [])
    assert also == sorted(set(also)) and entry["slide"] not in also


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_claim_that_needs_a_proof_has_a_check(entry):
    assert entry["kind"] not in PROVED or "check" in entry


def test_ids_are_unique_in_order_and_without_gaps():
    numbers = [number(entry) for entry in ENTRIES]
    assert numbers == sorted(set(numbers))
    for slide in {slide for slide, _ in numbers}:
        running = [k for s, k in numbers if s == slide]
        assert running == list(range(1, len(running) + 1)), f"slide {slide}"


@pytest.mark.parametrize("entry", CHECKED, ids=lambda entry: entry["id"])
def test_check_holds(entry):
    exec(compile(entry["check"], f"erratum {entry['id']}", "exec"), {"__name__": "check"})


@pytest.mark.parametrize("entry", CHECKED, ids=lambda entry: entry["id"])
def test_each_assert_of_the_check_is_reached_and_can_fail(entry):
    """There is an assert, and turning any one of them into its opposite makes the check red."""
    asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(entry["check"])))
    assert asserts
    for which in range(asserts):
        tree = Falsify(which).visit(ast.parse(entry["check"]))
        name = f"erratum {entry['id']}, assert {which} falsified"
        code = compile(ast.fix_missing_locations(tree), name, "exec")
        with pytest.raises(AssertionError):
            exec(code, {"__name__": "check"})


class Falsify(ast.NodeTransformer):
    """Turn the assert with the given number, ``assert claim``, into ``assert not claim``."""

    def __init__(self, which: int) -> None:
        self.left = which

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        if self.left == 0:
            node.test = ast.UnaryOp(ast.Not(), node.test)
        self.left -= 1
        return node
