"""A mirror of README, notebooks and results beside the pages, in which relative links lead where they lead in the
repository."""

import ast, json, os, re
from collections.abc import Callable
from pathlib import Path

PAGES = (
    "README.md",
    "nbs/README.md",
    "nbs/*.ipynb",
    "nbs/*/*.ipynb",
    "results/*/*.ipynb",
    "results/evidence/verdict.md",
    "results/precision/tries.md",
    "data/*/README.md",
    "saaae/pretrained/*/README.md",
)
SHOWN = (
    "results/*/*.png",
    "results/*/*.md",
    "results/*/*/*.png",
    "results/compare/*",
    "results/bench/*.csv",
)  # what the site's own pages show
MOVED = {
    "results/evidence/verdict.md": "results/evidence/effects.md"
}  # beside verdict.ipynb, which would be the same page
LINK = re.compile(r"(?<!`)(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}


def write(path: Path, content: bytes) -> None:
    "Write what has changed, so that a second build reads only that."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def api_entries(path: Path) -> str:
    "Autodoc's directives for what a module defines: classes before functions, and errors last, under headings."
    found = {"Classes": [], "Functions": [], "Errors": []}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            if isinstance(node, ast.FunctionDef):
                found["Functions"].append(f".. autofunction:: {node.name}")
            else:
                bases = "\n   :show-inheritance:" if node.bases else ""
                found["Errors" if node.name.endswith("Error") else "Classes"].append(
                    f".. autoclass:: {node.name}{bases}"
                )
    return "".join(
        f"\n## {heading}\n\n```{{eval-rst}}\n" + "\n\n".join(entries) + "\n```\n"
        for heading, entries in found.items()
        if entries
    )


def api_pages(root: Path, folder: Path) -> None:
    "A page of the reference for each notebook that a module comes from."
    for notebook in sorted((root / "nbs").glob("**/*.ipynb")):
        found = re.search(r"#\| default_exp ([\w.]+)", notebook.read_text(encoding="utf-8"))
        if not found:
            continue
        module, where = f"saaae.{found[1]}", notebook.relative_to(root).as_posix()
        text = (
            f"# {module}\n\nFrom the notebook [{notebook.stem}](../_repo/{where}), which explains and tests it.\n\n"
            f"```{{eval-rst}}\n.. automodule:: {module}\n   :no-members:\n\n.. currentmodule:: {module}\n```\n"
        )
        source = root / f"{module.replace('.', '/')}.py"
        write(folder / f"{found[1]}.md", (text + api_entries(source)).encode())


def place(
    path: Path,  # a file of the repository
    root: Path,  # of the repository
    pages: set[Path],  # files that become pages
) -> str:  # where it is in the mirror; markdown that is no page is a table, for pages to include
    "A file's place in the mirror."
    name = path.relative_to(root).as_posix()
    return MOVED.get(name, name) if path in pages or path.suffix != ".md" else f"{name}.txt"


def links(
    text: str,  # markdown of a page
    folder: Path,  # where the page is
    root: Path,  # of the repository
    pages: set[Path],  # files that become pages
    needed: set[Path],  # files that links lead to; grows
) -> str:  # the same with links from the top of the site; one to a folder is its text, as a site shows no folders
    "Collect and turn what a page links to. Raises `FileNotFoundError` for a link to nothing."

    def follow(m: re.Match) -> str:
        bang, label, target = m.groups()
        if re.match(r"[a-z]+:|#", target):
            return m[0]
        name, _, anchor = target.partition("#")
        bases = (
            folder,
            *(root / "nbs" / room for room in ("", "lab", "apps", "tools")),
            root,
        )  # an executed notebook was written in nbs or a room of it, the README's tables for the README
        path = next((p for base in bases if (p := Path(os.path.normpath(base / name))).exists()), None)
        if path is None:
            raise FileNotFoundError(f"{folder.relative_to(root)}: there is no {target}, which a page links to.")
        if path.is_dir():
            return label
        needed.add(path)
        return f"{bang}[{label}](/_repo/{place(path, root, pages)}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(follow, text)


def notebook(path: Path, turn: Callable[[str], str], executed: list[str]) -> str:
    """A notebook with `language_info`, which `nbdev_clean` strips and without which no cell is highlighted, and with
    links to its `executed` copies; widgets and directives to nbdev are left out."""
    nb = json.loads(path.read_text(encoding="utf-8"))
    if executed:
        copies = ", ".join(f"[{name}]({name})" for name in executed)
        nb["cells"][0]["source"] = "".join(nb["cells"][0]["source"]) + f"\n\nExecuted, with its figures: {copies}."
    nb["metadata"] = {"kernelspec": nb["metadata"]["kernelspec"], "language_info": LANGUAGE}
    for cell in nb["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "markdown":
            cell["source"] = turn(re.sub(r"^- skip_exec: true\n?", "", "".join(cell["source"]), flags=re.M))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "text/markdown" in data:
                data["text/markdown"] = turn("".join(data["text/markdown"]))
    return json.dumps(nb, ensure_ascii=False)


def build(root: Path, out: Path) -> None:
    "Make the mirror, and leave nothing in it that the repository no longer has."
    pages, shown = ({p for pattern in patterns for p in root.glob(pattern)} for patterns in (PAGES, SHOWN))
    needed, made = set(), {}
    for path in sorted(pages | {p for p in shown if p.suffix == ".md"}):
        turn = lambda text: links(text, path.parent, root, pages, needed)
        if path.suffix == ".ipynb":
            copies = root.glob(f"results/*/{path.name}") if path.is_relative_to(root / "nbs") else ()
            text = notebook(path, turn, sorted(p.relative_to(root).as_posix() for p in copies))
        else:
            text = turn(path.read_text(encoding="utf-8"))
        made[out / place(path, root, pages)] = text.encode()
    for path in sorted(shown | needed):
        made.setdefault(out / place(path, root, pages), path.read_bytes())
    for path, content in made.items():
        write(path, content)
    for path in out.rglob("*"):
        if path.is_file() and path not in made:
            path.unlink()
