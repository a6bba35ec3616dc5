"""Run the notebooks of the method, the lab and the applications whose sources have changed, and keep their outputs.

    python tools/run_notebooks.py [--all]
"""

import argparse, base64, hashlib, io, json, os, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

ROOT = Path(__file__).parent.parent
EXECUTED = ROOT / "nbs" / "executed.json"  # notebook -> the hash of the sources that its outputs come from


def with_outputs():
    "The notebooks that are committed with outputs: those that export the method, the lab and the applications."
    found = [p for folder in ("", "lab", "apps") for p in (ROOT / "nbs" / folder).glob("*.ipynb")]
    return sorted(p for p in found if "#| default_exp" in p.read_text(encoding="utf-8"))


def source_hash(path):
    "SHA-256 of the sources of a notebook's code cells."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def stale():
    "The notebooks whose code has changed since they were run."
    known = json.loads(EXECUTED.read_text()) if EXECUTED.exists() else {}
    return [p for p in with_outputs() if known.get(p.relative_to(ROOT).as_posix()) != source_hash(p)]


def small_png(data):
    "A PNG in base64, of at most 128 colours."
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    picture.quantize(128).save(content := io.BytesIO(), "PNG", optimize=True)
    return min(base64.b64encode(content.getvalue()).decode(), data.replace("\n", ""), key=len)


def run(path):
    "Execute a notebook in place; only what it prints, shows and draws stays."
    notebook = nbformat.read(path, 4)
    there = dict(metadata=dict(path=path.parent))
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=there).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for o in cell.outputs:
            if "execution_count" in o:
                o.execution_count = None
            if "image/png" in o.get("data", {}):
                o.data["image/png"] = small_png(o.data["image/png"])
    nbformat.write(notebook, path)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--all", action="store_true", help="also those that have not changed")
    todo = with_outputs() if p.parse_args().all else stale()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = []
    for path in todo:
        name = path.relative_to(ROOT).as_posix()
        print(name, flush=True)
        try:
            run(path)
        except CellExecutionError as e:
            failed.append(name)
            print(f"{name} failed:\n{e}", file=sys.stderr)
            continue
        known = json.loads(EXECUTED.read_text()) if EXECUTED.exists() else {}
        EXECUTED.write_text(json.dumps(dict(sorted((known | {name: source_hash(path)}).items())), indent=1) + "\n")
    print(f"{len(todo) - len(failed)} notebooks were run." if todo else "No notebook has changed since it was run.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
