"""Execute the chapters and store their outputs; or check that both twins are in step.

    python tools/notebooks.py [PAGE.md ...]      execute, write PAGE.ipynb beside PAGE.md
    python tools/notebooks.py --check            compare without executing (under a second)

The .md twin is the source. The .ipynb twin holds the same cells with their outputs, and comes
out byte-identical when nothing changed: cell ids count, times are not stored. What Jupyter needs to
take the twins for equal is stored, so that either may be opened and saved. The seconds that each
page took go to book/timings.json, which the page headers show.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat

from lib.runs.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "lecture11"
TIMINGS = ROOT / "book" / "timings.json"

# As in the Makefile: where the home cannot be written to, a page would store a warning, a fault.
os.environ.setdefault("MPLCONFIGDIR", str(Path(sys.prefix) / "matplotlib"))
os.environ.setdefault("IPYTHONDIR", str(Path(sys.prefix) / "ipython"))


def source(page: Path) -> nbformat.NotebookNode:
    """The notebook that PAGE.md describes, not executed."""
    notebook = jupytext.read(page)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata["jupytext"].pop("text_representation")  # as Jupytext does when it saves
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{page.stem}-{number:03d}"
    return notebook


def execute(page: Path) -> float:
    """Write PAGE.ipynb with fresh outputs; return the seconds that it took."""
    from nbclient import NotebookClient

    notebook = source(page)
    start = time.perf_counter()
    NotebookClient(
        notebook, timeout=120, record_timing=False, resources={"metadata": {"path": page.parent}}
    ).execute()
    seconds = time.perf_counter() - start
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
    write_whole(page.with_suffix(".ipynb"), (nbformat.writes(notebook) + "\n").encode())
    return seconds


def merge_streams(outputs: list) -> list:
    """Join neighboring chunks of one stream: where they break depends on timing."""
    merged: list = []
    for output in outputs:
        last = merged[-1] if merged else None
        same = last and output.output_type == last.output_type == "stream"
        if same and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def differences(page: Path) -> list[str]:
    """What is wrong with the pair, one line a fault."""
    target = page.with_suffix(".ipynb")
    if not target.exists():
        return [f"{target.name} is missing"]
    mine, theirs = source(page), nbformat.read(target, as_version=4)
    faults = []
    if mine.metadata != theirs.metadata:
        faults.append(f"{target.name}: the metadata differ from {page.name}")
    written = jupytext.writes(mine, "md:myst")
    if written != page.read_text(encoding="utf-8"):
        faults.append(f"{page.name} is not as Jupytext writes it: saved in Jupyter, it changes")
    expected, stored = mine.cells, theirs.cells
    if len(expected) != len(stored):
        faults.append(f"{page.name} has {len(expected)} cells, {target.name} {len(stored)}")
    executed = 0
    for number, (mine, theirs) in enumerate(zip(expected, stored, strict=False)):
        where = f"{target.name}, cell {number}"
        if (mine.cell_type, mine.source) != (theirs.cell_type, theirs.source):
            faults.append(f"{where}: the text differs from {page.name}")
        if mine.metadata != theirs.metadata:
            faults.append(f"{where}: the tags differ from {page.name}")
        if mine.id != theirs.id:
            faults.append(f"{where}: the id is {theirs.id}, not {mine.id}")
        if mine.cell_type == "code":
            executed += 1
            if theirs.get("execution_count") != executed:
                faults.append(f"{where}: not executed, or out of order")
            if any(output.output_type == "error" for output in theirs.get("outputs", [])):
                faults.append(f"{where}: stored an error")
            for output in theirs.get("outputs", []):
                if output.get("name") == "stderr":
                    faults.append(f"{where}: stored a warning")
                if "image/png" in output.get("data", {}):
                    alt = output.metadata.get("image/png", {}).get("alt")
                    if not alt:
                        faults.append(f"{where}: a figure without alt text")
    return faults


def differs(seconds: float, stored: float | None) -> bool:
    """Whether a page took another time, so that its header should say so."""
    return stored is None or abs(seconds - stored) > max(1, stored / 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="the .md twins; all when left out")
    parser.add_argument("--check", action="store_true", help="compare the twins, execute nothing")
    options = parser.parse_args()
    pages = [page.resolve() for page in options.pages] or sorted(PAGES.glob("*.md"))
    if missing := [page for page in pages if page.suffix != ".md" or not page.exists()]:
        parser.error(f"no such page: {missing[0]}")

    if options.check:
        faults = [fault for page in pages for fault in differences(page)]
        lone = [p for p in PAGES.glob("*.ipynb") if not p.with_suffix(".md").exists()]
        faults += [f"{path.name} has no .md twin" for path in lone]
        print("\n".join(faults) or f"{len(pages)} pairs are in step")
        if faults:
            print("Run `make notebooks` to execute the pages and store their outputs.")
        return bool(faults)

    timings = json.loads(TIMINGS.read_text(encoding="utf-8")) if TIMINGS.exists() else {}
    for page in pages:
        print(page.relative_to(ROOT), end=" ", flush=True)
        seconds = round(execute(page), 1)
        print(f"{seconds} s")
        if differs(seconds, timings.get(page.stem)):
            timings[page.stem] = seconds
            write_whole(TIMINGS, (json.dumps(timings, indent=2, sort_keys=True) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
