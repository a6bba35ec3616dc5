"Formulas as MathML, made by docutils: every browser of today shows it, and no script is fetched from elsewhere."

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util.math import get_node_equation_number


def mathml(formula: str, as_block: bool) -> str:
    """Docutils's MathML, without what it cannot read: sizes of brackets, and fractions without braces. Raises
    `MathError` for an unknown command."""
    braced = re.sub(r"(\\[td]?frac)\s*(\d)\s*(\d)", r"\1{\2}{\3}", formula)
    return tex2mathml(re.sub(r"\\[bB]igg?(?![a-z])", "", braced), as_block=as_block)


def inline(self, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), False))
    raise nodes.SkipNode


def block(self, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(mathml(node.astext(), True))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append("</div>")
    raise nodes.SkipNode


def setup(app) -> dict:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return dict(parallel_read_safe=True, parallel_write_safe=True)
