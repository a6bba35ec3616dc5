"Every module notebook runs under nbdev_test: its asserts are the unit tests."
import json, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(n for n in ROOT.glob("nbs/**/*.ipynb") if "#| default_exp" in n.read_text())


def test_there_are_notebooks():
    assert [n.relative_to(ROOT / "nbs").with_suffix("").as_posix() for n in NOTEBOOKS] == [
        "00_data", "00b_aims", "01_attention", "02_reparameterization", "03_models", "04_training", "05_evaluation", "06_masks", "07_faithfulness",
        "08_variants", "09_sweep", "10_statistics", "11_protocol", "12_precision", "13_anchor", "14_restoration", "15_compression", "16_conditional",
        "17_cli", "17b_commands", "18_explorer", "19_watching", "20_processes", "21_benchmark",
        "lab/conditioned", "lab/controls", "lab/gates", "lab/objectives"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebook(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    assert any("assert" in "".join(c["source"]) or "test_eq" in "".join(c["source"]) for c in cells if c["cell_type"] == "code")
    run = subprocess.run([Path(sys.executable).with_name("nbdev_test"), "--path", notebook], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "Success." in run.stdout, run.stdout[-3000:] + run.stderr[-3000:]
