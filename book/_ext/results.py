"""The results page: ``{record} NAME`` draws a record, or says that there is none.

Its option ``:picture:`` is a kind of record_pictures and what it draws; several are separated by
semicolons. Under them the table is folded; without one it is open. ``:columns:`` names the numbers
shown (all if there is none); below them stands where and how they were measured. The content says
what a missing record would take.
"""

from math import floor, log10

from docutils import nodes
from docutils.statemachine import StringList
from record_pictures import picture
from sphinx.util.docutils import SphinxDirective

from lib.runs import records

HIDDEN = ("seed", "seconds")


class Record(SphinxDirective):
    required_arguments = 1
    option_spec = {"columns": str.split, "picture": str}  # noqa: RUF012
    has_content = True

    def run(self):
        [name] = self.arguments
        self.env.note_dependency(str(records.FOLDER / f"{name}.json"))
        record = records.load(name)
        if record is None:
            lines = missing(name, " ".join(self.content))
        else:
            lines = [""]
            for kind in filter(None, self.options.get("picture", "").split(";")):
                lines += [picture(record, *kind.split()), ""]
            table = shown(record, self.options.get("columns"))
            if "picture" in self.options:
                summary = "<summary>The numbers, and how they were measured</summary>"
                table = [f'<details class="fold">{summary}', "", *table, "", "</details>"]
            lines += table
        node = nodes.container()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, node)
        return node.children


def missing(name, takes):
    return [f"*Not yet measured.* `python -m experiments {name}`. {takes}"]


def shown(record, columns=None):
    """A row for each variant: mean ± standard deviation over its seeds; then where and how."""
    summary, machine, settings = record["summary"], record["machine"], dict(record["settings"])
    names = dict.fromkeys(name for row in summary.values() for name in row)
    columns = columns or [name for name in names if name not in HIDDEN]
    lines = ["| | " + " | ".join(name.replace("_", " ") for name in columns) + " |"]
    lines += ["| :--- |" + " ---: |" * len(columns)]
    for variant, row in summary.items():
        label = variant.replace("-", "\N{NON-BREAKING HYPHEN}")
        lines += [f"| {label} | " + " | ".join(cell(row.get(name)) for name in columns) + " |"]
    seconds = sum(row["seconds"] for rows in record["results"].values() for row in rows)
    seeds, device = settings.pop("seeds"), settings.pop("device")
    where = machine["accelerator"] if device != "cpu" else f"{machine['processor']}, one thread"
    if record["processes"] > 1:
        where += f" in each of {record['processes']} processes"
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    over = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One seed."
    versions = f"Python {machine['python']}, PyTorch {machine['torch']}"
    lines += ["", f"{over} Settings: {said}."]
    lines += [f"Measured in {duration(seconds)} on {where}; {versions}; commit {record['commit']}."]
    return lines


def cell(number):
    if number is None:
        return ""
    mean, deviation = number["mean"], number["deviation"]
    if deviation == 0:
        return f"{mean:.4g}"
    decimals = min(3, max(0, 1 - floor(log10(deviation))))  # two digits of the deviation
    return f"{mean:.{decimals}f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{deviation:.{decimals}f}"


def duration(seconds):
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def setup(app):
    app.add_directive("record", Record)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
