"""Sphinx: what the site is built from. `_repo` is a mirror of what the pages show, made anew by each build; nothing in
it is committed."""

import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]

import mirror

settings = ConfigParser(delimiters=["="])
settings.read(ROOT / "settings.ini", encoding="utf-8")
project, author, release = "saaae", settings["DEFAULT"]["author"], settings["DEFAULT"]["version"]
copyright = settings["DEFAULT"]["copyright"]

mirror.build(ROOT, HERE / "_repo")
mirror.api_pages(ROOT, HERE / "api")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "myst_nb", "docments", "mathml", "modules"]
exclude_patterns = ["_build", ".gitignore"]
highlight_language = "none"  # a block without a language is a command
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # so that links in outputs are followed, too
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]  # widgets of progress bars, which have a text beside them

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # types are in the tables
autodoc_preserve_defaults = True
add_module_names = False

html_theme = "pydata_sphinx_theme"
html_title = "saaae"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
alone = [p.stem for p in HERE.glob("*.md") if p.stem != "notebooks"]  # pages without a section of their own
html_sidebars = {page: [] for page in (*alone, "search", "genindex", "py-modindex", "_repo/README")}
html_theme_options = {
    "header_links_before_dropdown": 8,
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
}
