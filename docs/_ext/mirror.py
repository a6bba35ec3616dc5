"A mirror of README, notebooks and results beside the pages, in which relative links lead where they lead in the repository."
import json, os, re
from pathlib import Path

PAGES = ("README.md", "nbs/*.ipynb", "results/*/*.ipynb", "results/evidence/verdict.md", "results/precision/tries.md", "data/*/README.md")
FIGURES = ("results/*/*.png", "results/*/*.md")  # what the site's own pages show
TABLES = re.compile(r"results/.+\.md$")          # included by pages, but not pages
LINK = re.compile(r"(?<!`)(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")
LANGUAGE = {"name": "python", "pygments_lexer": "ipython3"}

def write(path: Path, content: bytes) -> None:
    "Write what has changed, so that a second build reads only that."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content: path.write_bytes(content)

def links(
    text: str,     # markdown of a page
    folder: Path,  # where the page is
    root: Path,    # of the repository
    needed: set[Path],  # files that links lead to; grows
) -> str:          # the same, where a link to a folder is its text, as a site shows no folders
    "Collect what a page links to. Raises `FileNotFoundError` for a link to nothing."
    def follow(m: re.Match) -> str:
        bang, label, target = m.groups()
        if re.match(r"[a-z]+:|#", target): return m[0]
        name, _, anchor = target.partition("#")
        path = next((p for base in (folder, root/"nbs") if (p := Path(os.path.normpath(base/name))).exists()), None)  # an executed notebook was written in nbs
        if path is None: raise FileNotFoundError(f"{folder.relative_to(root)}: there is no {target}, which a page links to.")
        if path.is_dir(): return label
        needed.add(path)
        return f"{bang}[{label}]({os.path.relpath(path, folder)}{'#' * bool(anchor)}{anchor})"
    return LINK.sub(follow, text)

def notebook(path: Path, root: Path, needed: set[Path]) -> str:
    "A notebook with `language_info`, which `nbdev_clean` strips and without which no cell is highlighted; its widgets' state is left out."
    nb = json.loads(path.read_text(encoding="utf-8"))
    nb["metadata"] = {"kernelspec": nb["metadata"]["kernelspec"], "language_info": LANGUAGE}
    for cell in nb["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "markdown": cell["source"] = links("".join(cell["source"]), path.parent, root, needed)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "text/markdown" in data: data["text/markdown"] = links("".join(data["text/markdown"]), path.parent, root, needed)
    return json.dumps(nb, ensure_ascii=False)

def build(root: Path, out: Path) -> None:
    "Make the mirror, and leave nothing in it that the repository no longer has."
    needed, pages = set(), {p for pattern in PAGES for p in root.glob(pattern)}
    made = {}
    for path in sorted(pages):
        text = notebook(path, root, needed) if path.suffix == ".ipynb" else links(path.read_text(encoding="utf-8"), path.parent, root, needed)
        made[out/path.relative_to(root)] = text.encode()
    for path in sorted((needed | {p for pattern in FIGURES for p in root.glob(pattern)}) - pages):
        if not TABLES.match(path.relative_to(root).as_posix()): made[out/path.relative_to(root)] = path.read_bytes()
        else: made[out/path.relative_to(root).with_suffix(".md.txt")] = path.read_bytes()
    for path, content in made.items(): write(path, content)
    for path in out.rglob("*"):
        if path.is_file() and path not in made: path.unlink()
