"""tools/notebooks.py: pairs in step pass its check, and each way of being out of step fails it."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jupytext
import nbformat
import pytest
import yaml
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig

ROOT = Path(__file__).resolve().parent.parent

PAGE = """---
jupytext:
  notebook_metadata_filter: kernelspec,-jupytext.text_representation.jupytext_version,-jupytext.text_representation.format_version
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A page

```{code-cell} ipython3
print("one")
print("two")
```

Some text.

```{code-cell} ipython3
:tags: [hide-input]

1 + 1
```
"""  # noqa: E501


def load(name, **names):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    vars(module).update(names)
    spec.loader.exec_module(module)
    return module


notebooks = load("notebooks")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    page = tmp_path_factory.mktemp("pair") / "05-page.md"
    page.write_text(PAGE, encoding="utf-8")
    notebooks.execute(page)
    return page


@pytest.fixture
def pair(executed, tmp_path):
    for suffix in (".md", ".ipynb"):
        shutil.copy(executed.with_suffix(suffix), tmp_path)
    return tmp_path / executed.name


def edit(page, change):
    """Change the stored notebook."""
    path = page.with_suffix(".ipynb")
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def test_the_committed_pairs_are_in_step():
    run = subprocess.run(
        [sys.executable, ROOT / "tools/notebooks.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


def codes(text):
    """The code cells of a page, as the book sees them and as Jupytext does."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    extensions = set(config["parse"]["myst_enable_extensions"])
    seen = (
        read_myst_markdown_notebook(text, MdParserConfig(enable_extensions=extensions)),
        jupytext.reads(text, "md:myst"),
    )
    return [[cell.source for cell in read.cells if cell.cell_type == "code"] for read in seen]


@pytest.mark.parametrize("page", sorted(notebooks.PAGES.glob("*.md")), ids=lambda p: p.stem)
def test_the_book_sees_each_code_cell_of_a_page(page):
    """A formula that is not closed would swallow the cells up to the next one, without a word."""
    book, twin = codes(page.read_text(encoding="utf-8"))
    assert book == twin


def test_a_formula_that_is_not_closed_swallows_cells():
    text = PAGE.replace("Some text.", "$$\nx = y\n\nSome text, and $x$.")
    book, twin = codes(text.replace("1 + 1\n```", "1 + 1\n```\n\n$$\nz\n$$"))
    assert len(book) < len(twin) == 2


def test_an_executed_pair_is_in_step(pair):
    assert notebooks.differences(pair) == []


def test_executing_again_gives_the_same_bytes(pair):
    before = pair.with_suffix(".ipynb").read_bytes()
    notebooks.execute(pair)
    assert pair.with_suffix(".ipynb").read_bytes() == before


def test_a_missing_notebook_is_a_fault(pair):
    pair.with_suffix(".ipynb").unlink()
    assert "missing" in notebooks.differences(pair)[0]


def test_changed_text_in_either_twin_is_a_fault(pair):
    pair.write_text(PAGE.replace("Some text", "Other text"), encoding="utf-8")
    assert "text differs" in notebooks.differences(pair)[0]


def test_changed_metadata_are_a_fault(pair):
    edit(pair, lambda notebook: notebook.metadata["jupytext"].pop("default_lexer"))
    assert "metadata differ" in notebooks.differences(pair)[0]


def test_a_page_that_saving_in_jupyter_would_change_is_a_fault(pair):
    pair.write_text(PAGE.replace("Some text.", "Some text.\n"), encoding="utf-8")
    assert notebooks.differences(pair) == [
        "05-page.md is not as Jupytext writes it: saved in Jupyter, it changes"
    ]


def test_changed_tags_are_a_fault(pair):
    pair.write_text(PAGE.replace("hide-input", "remove-input"), encoding="utf-8")
    assert "tags differ" in notebooks.differences(pair)[0]


def test_a_deleted_last_cell_is_a_fault(pair):
    edit(pair, lambda notebook: notebook.cells.pop())
    assert "has 4 cells" in notebooks.differences(pair)[0]


def test_a_cell_that_never_ran_is_a_fault(pair):
    edit(pair, lambda notebook: notebook.cells[-1].update(execution_count=None, outputs=[]))
    assert "not executed" in notebooks.differences(pair)[0]


def test_a_figure_without_alt_text_is_a_fault(pair):
    output = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
    edit(pair, lambda notebook: notebook.cells[-1].outputs.append(output))
    assert "alt text" in notebooks.differences(pair)[0]


def test_a_stored_warning_or_error_is_a_fault(pair):
    warning = nbformat.v4.new_output("stream", name="stderr", text="careful")
    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    edit(pair, lambda notebook: notebook.cells[-1].outputs.extend([warning, error]))
    assert {"stored a warning", "stored an error"} == {
        fault.split(": ")[1] for fault in notebooks.differences(pair)
    }


def lab(page):
    """What JupyterLab holds of a page when it is saved: with the kernel's and Python's details."""
    notebook = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    local = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook.metadata.update(kernelspec=local, language_info={"name": "python", "version": "3.9"})
    return notebook


def test_a_page_saved_in_jupyterlab_is_the_repositorys(pair):
    """Both twins, byte by byte, after the hook: with it `make lab` leaves nothing to commit."""
    settings = SimpleNamespace(FileContentsManager=SimpleNamespace())
    config = load("jupyter_lab_config", get_config=lambda: settings)
    assert settings.FileContentsManager.pre_save_hook is config.keep_header
    opened = lab(pair)
    page = {"type": "file", "content": jupytext.writes(opened, "md:myst")}
    notebook = {"type": "notebook", "content": opened}
    assert page["content"] != PAGE
    config.keep_header(page, "lecture11/05-page.md", contents_manager=None)
    config.keep_header(notebook, "lecture11/05-page.ipynb", contents_manager=None)
    assert page["content"] == PAGE
    stored = pair.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert nbformat.writes(notebook["content"]) + "\n" == stored


def test_notebooks_that_are_no_pages_are_saved_as_they_are(pair):
    config = load("jupyter_lab_config", get_config=lambda: mock.MagicMock())
    notebook = {"type": "notebook", "content": lab(pair)}
    config.keep_header(notebook, "mine.ipynb")
    assert notebook["content"] == lab(pair)


def test_jupytext_takes_the_twins_for_equal(pair):
    """What Jupytext compares where the .ipynb is newer: both, written as the .md is."""
    twins = [jupytext.read(pair), nbformat.read(pair.with_suffix(".ipynb"), as_version=4)]
    written = [jupytext.writes(twin, "md:myst") for twin in twins]
    assert written == [PAGE, PAGE]


def test_a_time_is_stored_when_it_is_new_or_another_by_a_quarter_and_a_second():
    assert notebooks.differs(0.5, None)
    assert not notebooks.differs(1.4, 0.5) and notebooks.differs(1.6, 0.5)
    assert not notebooks.differs(25.0, 20.0) and notebooks.differs(25.1, 20.0)
    assert notebooks.differs(14.9, 20.0)
