"Every module notebook runs under nbdev_test: its asserts are the unit tests."

import json, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import run_notebooks

NOTEBOOKS = sorted(n for n in ROOT.glob("nbs/**/*.ipynb") if "#| default_exp" in n.read_text())


def test_there_are_notebooks():
    assert [n.relative_to(ROOT / "nbs").with_suffix("").as_posix() for n in NOTEBOOKS] == [
        "00_data",
        "01_attention",
        "02_reparameterization",
        "03_models",
        "04_config",
        "05_training",
        "06_evaluation",
        "07_precision",
        "08_anchoring",
        "apps/codec",
        "apps/conditional",
        "apps/front",
        "apps/hyperprior",
        "apps/picture_training",
        "apps/pictures",
        "apps/recognition",
        "apps/restoration",
        "apps/restorer",
        "apps/second_opinion",
        "lab/audit",
        "lab/compare",
        "lab/conditioned",
        "lab/controls",
        "lab/faithfulness",
        "lab/gates",
        "lab/linear",
        "lab/masks",
        "lab/objectives",
        "lab/own",
        "lab/pixel_weights",
        "lab/protocol",
        "lab/rates",
        "lab/start",
        "lab/statistics",
        "lab/sweep",
        "lab/variants",
        "one_page",
        "runs/anchored",
        "runs/checkpoint",
        "runs/folder",
        "runs/pretrained",
        "runs/processes",
        "runs/report",
        "runs/weights",
        "sources/cache",
        "sources/files",
        "sources/folder",
        "sources/images",
        "sources/load",
        "sources/photos64",
        "sources/stl10",
        "sources/tiny_imagenet",
        "tools/benchmark",
        "tools/cli",
        "tools/commands",
        "tools/explorer",
        "tools/pair",
        "tools/picture_commands",
        "tools/watching",
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook(notebook, forks):
    cells = json.loads(notebook.read_text())["cells"]
    assert any(
        "assert" in "".join(c["source"]) or "test_eq" in "".join(c["source"]) for c in cells if c["cell_type"] == "code"
    )
    run = forks.run("import sys\nfrom nbdev.test import nbdev_test\nnbdev_test(sys.argv[1])", notebook)
    assert run.returncode == 0 and "Success." in run.stderr, run.stderr[-3000:]


def test_the_command():
    command = [Path(sys.executable).with_name("nbdev_test"), "--path", ROOT / "nbs" / "lab" / "objectives.ipynb"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "Success." in run.stdout, run.stdout[-3000:] + run.stderr[-3000:]


def test_outputs_are_of_these_sources():
    "Notebooks that are committed with outputs were run as they are: else `make notebooks`."
    assert [p.relative_to(ROOT).as_posix() for p in run_notebooks.stale()] == []


def test_a_changed_source_is_found(tmp_path, monkeypatch):
    path = tmp_path / "nbs" / "toy.ipynb"
    path.parent.mkdir()
    cells = [dict(cell_type="code", source=["#| default_exp toy"]), dict(cell_type="code", source=["1 + 1"])]
    path.write_text(json.dumps(dict(cells=cells)))
    monkeypatch.setattr(run_notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(run_notebooks, "EXECUTED", path.parent / "executed.json")
    assert run_notebooks.stale() == [path]
    run_notebooks.EXECUTED.write_text(json.dumps({"nbs/toy.ipynb": run_notebooks.source_hash(path)}))
    assert run_notebooks.stale() == []
    cells[1]["source"] = ["1 + 2"]
    path.write_text(json.dumps(dict(cells=cells)))
    assert run_notebooks.stale() == [path]


@pytest.mark.parametrize("notebook", run_notebooks.with_outputs(), ids=lambda n: n.stem)
def test_a_picture_comes_early(notebook):
    cells = json.loads(notebook.read_text())["cells"][:10]
    assert any("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", []))
