"""A chapter bears the number of its file: 14 stays 14 while chapters before it are missing."""

import re

from docutils import nodes


def number_by_file(app, env):
    for docname, numbers in env.toc_secnumbers.items():
        if not (match := re.match(r"lecture11/(\d+)-", docname)):
            continue
        chapter = int(match[1])
        numbers.update({a: (chapter, *n[1:]) for a, n in numbers.items() if n})
        env.titles[docname]["secnumber"] = (chapter,)
        for reference in env.tocs[docname].findall(nodes.reference):
            if number := reference.get("secnumber"):
                reference["secnumber"] = (chapter, *number[1:])
        for kind in env.toc_fignumbers.get(docname, {}).values():
            kind.update({a: (chapter, *n[1:]) for a, n in kind.items()})
    return []


def setup(app):
    app.connect("env-get-updated", number_by_file, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
