"""book/slides.yml and the pages agree: every slide has its row, every row its anchor and proof."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SLIDES = yaml.safe_load((ROOT / "book/slides.yml").read_text(encoding="utf-8"))
ERRATA = yaml.safe_load((ROOT / "book/errata.yml").read_text(encoding="utf-8"))
PROVED = [entry for entry in ERRATA if entry["tier"] != "misprint"]
PAGES = sorted((ROOT / "lecture11").glob("*.md")) + sorted((ROOT / "book").glob("*.md"))
WRITTEN = [row for row in SLIDES if row["status"] == "written"]


def chapter_of(page):
    return page.stem[:2] if page.parent.name == "lecture11" else page.stem


def anchors():
    """Where each slide anchor stands: number -> chapters, one entry an occurrence."""
    found = {}
    for page in PAGES:
        for number in re.findall(r"^\(slide-(\d+)\)=$", page.read_text(encoding="utf-8"), re.M):
            found.setdefault(int(number), []).append(chapter_of(page))
    return found


def names(path):
    """The functions and classes that a Python file defines, methods as Class.method."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            for child in getattr(node, "body", []):
                if isinstance(node, ast.ClassDef) and isinstance(child, ast.FunctionDef):
                    found.add(f"{node.name}::{child.name}")
    return found


def test_every_slide_from_1_to_44_has_one_row_in_order():
    assert [row["slide"] for row in SLIDES] == list(range(1, 45))


@pytest.mark.parametrize("row", SLIDES, ids=lambda row: f"slide-{row['slide']}")
def test_a_row_is_complete(row):
    assert set(row) == {"slide", "title", "chapter", "states", "code", "tests", "status"}
    assert row["status"] in ("written", "planned")
    assert row["title"] and row["states"].strip().endswith((".", "$"))
    if row["status"] == "planned":
        assert not row["code"] and not row["tests"]


def test_the_written_slides_are_those_with_an_anchor_each_in_its_chapter():
    assert anchors() == {row["slide"]: [row["chapter"]] for row in WRITTEN}


@pytest.mark.parametrize("row", WRITTEN, ids=lambda row: f"slide-{row['slide']}")
def test_the_symbols_of_a_row_exist(row):
    for name in row["code"]:
        module, *attributes = name.split(".")[:2], *name.split(".")[2:]
        found = importlib.import_module(".".join(module))
        for attribute in attributes:
            found = getattr(found, attribute)


@pytest.mark.parametrize("row", WRITTEN, ids=lambda row: f"slide-{row['slide']}")
def test_the_tests_of_a_row_exist(row):
    for test in row["tests"]:
        path, _, name = test.partition("::")
        assert name in names(path), f"{test} does not exist"


def test_what_is_implemented_is_tested():
    for row in WRITTEN:
        assert bool(row["code"]) == bool(row["tests"]), f"slide {row['slide']}"


@pytest.mark.parametrize("entry", PROVED, ids=lambda entry: f"erratum-{entry['id']}")
def test_an_erratum_is_shown_in_the_chapter_of_its_slide(entry):
    row = SLIDES[entry["slide"] - 1]
    [page] = [page for page in PAGES if chapter_of(page) == row["chapter"]]
    label = f"<erratum-{entry['id'].replace('.', '-')}>"
    assert label in page.read_text(encoding="utf-8"), f"{page.name} never links {label}"


def test_every_erratum_that_a_page_links_exists_and_is_no_misprint():
    known = {f"erratum-{entry['id'].replace('.', '-')}" for entry in PROVED}
    for page in PAGES:
        linked = set(re.findall(r"<(erratum-[\d-]+)>", page.read_text(encoding="utf-8")))
        assert linked <= known, f"{page.name} links {linked - known}"


def test_a_margin_note_links_one_erratum_at_most():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for note in re.findall(r"^```\{margin\}\n(.*?)^```$", text, re.M | re.S):
            assert note.count("<erratum-") <= 1, f"{page.name}: {note}"


@pytest.mark.parametrize("page", ["README.md", "book/intro.md", "book/errata.md"])
def test_a_page_says_that_the_slides_were_read_from_a_transcription(page):
    text = re.sub(r"[\s*]+", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert re.search(
        r" read from a transcription (of their text, )?without (the|their) figures", text
    )


def test_labels_in_docstrings_name_a_theorem_of_a_page():
    labels = set()
    for page in PAGES:
        labels |= set(re.findall(r"^:label: (\S+)$", page.read_text(encoding="utf-8"), re.M))
    for path in sorted((ROOT / "lib").rglob("*.py")):
        cited = set(
            re.findall(
                r"\b((?:def|prop|thm|lem|cor|alg)-[a-z0-9-]+)\b", path.read_text(encoding="utf-8")
            )
        )
        assert cited <= labels, f"{path.name} names {cited - labels}"
