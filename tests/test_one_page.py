"The method on one page: short, committed with its pictures, and the package gives the same losses."

import json, re

from conftest import ROOT, papermill

PAGE = ROOT / "nbs" / "one_page.ipynb"


def code():
    "The code cells: source and outputs."
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    return [("".join(c["source"]), c["outputs"]) for c in cells if c["cell_type"] == "code"]


def test_the_method_takes_at_most_80_lines():
    written = [line for source, _ in code() if source.startswith("#| export") for line in source.splitlines()[1:]]
    lines = [line for line in written if line.strip() and not re.match("(import|from) ", line)]
    parts = "class Attention", "def noise_gate", "z = mu + gate * sigma * eps", "def loss", "def train"
    assert all(part in "\n".join(lines) for part in parts)
    assert len(lines) <= 80 and max(map(len, lines)) <= 120


def test_it_runs_and_the_package_gives_the_same_losses(tmp_path):
    run = papermill(PAGE.name, tmp_path, epochs=1, train_images=64, test_images=6)
    assert run.returncode == 0 and run.stdout.count("package [") == 2, run.stderr[-3000:]


def test_it_is_committed_with_its_pictures():
    shown = [kind for _, outputs in code() for output in outputs for kind in output.get("data", ())]
    assert shown.count("image/png") == 3 and shown.count("text/markdown") == 1 and PAGE.stat().st_size < 400_000
