"The directive `modules`: a section with a line for each module, which is its docstring."

import ast
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]


class Modules(SphinxDirective):
    "The argument is the section's title; the content names a module of the package in each line."

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        title, rows = self.arguments[0], []
        for name in self.content:
            path = ROOT / "saaae" / f"{name.replace('.', '/')}.py"
            self.env.note_dependency(str(path))
            said = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
            rows.append(f"| [{name}]({name}.md) | {said.replace('|', chr(92) + '|')} |")
        toctree = ["```{toctree}", f":caption: {title}", ":hidden:", "", *self.content, "```"]
        table = [":::{table}", ":class: modules", "", "| module | what it is |", "|---|---|", *rows, ":::"]
        section = nodes.section(ids=[nodes.make_id(title)], names=[nodes.fully_normalize_name(title)])
        section += nodes.title(title, title)
        section += self.parse_text_to_nodes("\n".join([*toctree, "", *table]))
        return [section]


def setup(app) -> dict:
    app.add_directive("modules", Modules)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
