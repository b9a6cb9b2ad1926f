"""The slide map and the errata page, made from book/slides.yml and book/errata.yml.

Also the substitutions ``{{ seconds_03 }}``: what book/timings.json says of each chapter.
"""

import json
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

BOOK = Path(__file__).resolve().parent.parent


def rows(name):
    return yaml.safe_load((BOOK / name).read_text(encoding="utf-8"))


def anchor(erratum):
    return "erratum-" + erratum["id"].replace(".", "-")


def indent(text, by):
    return str(text).rstrip().replace("\n", "\n" + " " * by)


class Generated(SphinxDirective):
    """A directive whose content is MyST text that `text()` writes."""

    def run(self):
        for name in ("slides.yml", "errata.yml"):
            self.env.note_dependency(str(BOOK / name))
        node = nodes.container()
        lines = self.text().splitlines()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, node)
        return node.children


class SlideMap(Generated):
    def text(self):
        errata = rows("errata.yml")
        parts = []
        slides = rows("slides.yml")
        chapters = dict.fromkeys(row["chapter"] for row in slides)
        for chapter in chapters:
            parts.append(self.heading(chapter))
            parts += [":::{list-table}", ":class: slide-map", ":widths: 8 50 42", ":header-rows: 1"]
            parts += ["* - No.", "  - What it states", "  - Code and tests"]
            for row in slides:
                if row["chapter"] == chapter:
                    here = [e for e in errata if row["slide"] in (e["slide"], *e.get("also", []))]
                    here = [e for e in here if e["tier"] != "misprint"]
                    parts.append(self.row(row, here))
            parts += [":::", ""]
        return "\n".join(parts)

    def heading(self, chapter):
        names = {"intro": "Introduction"}
        return f":::{{rubric}} {names.get(chapter, f'Chapter {chapter}')}\n:::\n"

    def row(self, row, errata):
        number, written = row["slide"], row["status"] == "written"
        link = f"{{ref}}`{number} <slide-{number}>`" if written else str(number)
        states = f"**{row['title']}.** {indent(row['states'], 4)}"
        if errata:
            states += " *Errata:* " + ", ".join(f"{{ref}}`{e['id']} <{anchor(e)}>`" for e in errata)
        if not written:
            evidence = "*The chapter is not written yet.*"
        elif row["code"]:
            code = ", ".join(f"`{name}`" for name in row["code"])
            names = (test.partition("::test_")[2].replace("_", " ") for test in row["tests"])
            evidence = f"{code}\n\n    *Tested:* {'; '.join(names)}."
        else:
            evidence = "On the page."
        return f"* - {link}\n  - {states}\n  - {evidence}"


class Errata(Generated):
    """``{errata} TIER`` lists the entries of a tier, ``{errata} summary`` the first in brief."""

    required_arguments = 1

    def text(self):
        (part,) = self.arguments
        tier = "answer" if part == "summary" else part
        write = {"summary": self.summary, "misprint": self.misprints}.get(part, self.entries)
        return write([entry for entry in rows("errata.yml") if entry["tier"] == tier])

    def summary(self, entries):
        lines = [":::{list-table}", ":class: errata-table", ":widths: 8 50 42", ":header-rows: 1"]
        lines += ["* - Slide", "  - Written", "  - Right"]
        for entry in entries:
            written, right = entry["row"]
            number = f"{{ref}}`{entry['slide']} <{anchor(entry)}>`{mark(entry)}"
            lines += [f"* - {number}", f"  - {written}", f"  - {right}"]
        return "\n".join([*lines, ":::", ""])

    def misprints(self, entries):
        lines = [":::{list-table}", ":class: errata-table", ":widths: 8 46 46", ":header-rows: 1"]
        lines += ["* - Slide", "  - Written", "  - Right"]
        for entry in entries:
            look_for = f". *Look for* {entry['look_for']}" if "look_for" in entry else ""
            lines += [f"* - {slides(entry)}{mark(entry)}", f"  - {indent(entry['written'], 4)}"]
            lines += [f"  - {indent(entry['right'], 4)}{look_for}"]
        return "\n".join([*lines, ":::", ""])

    def entries(self, entries):
        return "\n".join(self.entry(entry) for entry in entries)

    def entry(self, entry):
        plural = "s" if "also" in entry else ""
        fields = {"Written": "written", "Right": "right", "Why": "why"}
        look_for = f" · look for {entry['look_for']}" if "look_for" in entry else ""
        lines = [f"({anchor(entry)})=", ":::::{container} erratum"]
        lines += [f"**{entry['id']}**{mark(entry)} · slide{plural} {slides(entry)}{look_for}", ""]
        for label, field in fields.items():
            lines += [f"{label}\n: {indent(entry[field], 2)}", ""]
        lines += ["````{admonition} The program", ":class: dropdown", "```python"]
        return "\n".join([*lines, entry["program"].rstrip(), "```", "````", ":::::", ""])


def mark(entry):
    """A dagger where the entry may be a slip of the transcription."""
    return "†" if "look_for" in entry else ""


def slides(entry):
    numbers = [entry["slide"], *entry.get("also", [])]
    return ", ".join(f"{{ref}}`{number} <slide-{number}>`" for number in numbers)


def measured_times(app, config):
    path = BOOK / "timings.json"
    timings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for page in sorted(Path(app.confdir).glob("lecture11/*.md")):
        seconds = timings.get(page.stem)
        text = "not measured yet" if seconds is None else f"{seconds:.0f} s on two CPU cores"
        config.myst_substitutions[f"seconds_{page.stem[:2]}"] = text


def setup(app):
    app.add_directive("slide-map", SlideMap)
    app.add_directive("errata", Errata)
    app.connect("config-inited", measured_times, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
