"The generated package, the notebooks, the README and the shipped photographs are in step with their sources."

import csv, dataclasses, json, re, shutil, subprocess, sys
from pathlib import Path

import pytest
from PIL import Image

from saaae.config import Config

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import fill_readme

NOTEBOOKS = sorted(ROOT.glob("nbs/**/*.ipynb"))
SOURCES = ("nbs", "saaae", "settings.ini", "setup.py", "README.md")


@pytest.fixture
def copy(tmp_path):
    "A copy of the sources under git, so that what a tool changes shows as a diff."
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    return tmp_path


def git(folder, *args):
    return subprocess.run(["git", "-C", folder, *args], check=True, capture_output=True, text=True).stdout


def changed_by(folder, tool):
    "What `tool` changes in a folder, as git sees it."
    subprocess.run([Path(sys.executable).with_name(tool)], cwd=folder, check=True, capture_output=True)
    return git(folder, "diff", "--stat") + git(folder, "ls-files", "--others", "--exclude=__pycache__")


def test_package_is_exported_from_the_notebooks(copy):
    assert changed_by(copy, "nbdev_export") == ""


def test_export_check_can_fail(copy):
    with open(copy / "saaae" / "models.py", "a") as f:
        f.write("# edited by hand\n")
    git(copy, "add", "-A")
    assert "saaae/models.py" in changed_by(copy, "nbdev_export")


def test_no_module_without_a_notebook():
    exported = [re.search(r"default_exp ([\w.]+)", n.read_text()) for n in ROOT.glob("nbs/**/*.ipynb")]
    written = {p.relative_to(ROOT / "saaae").with_suffix("") for p in ROOT.glob("saaae/**/*.py")}
    assert {".".join(p.parts) for p in written if p.name[0] != "_"} == {found[1] for found in exported if found}


def test_notebooks_are_clean(copy):
    assert changed_by(copy, "nbdev_clean") == ""


@pytest.mark.parametrize("notebook", [n for n in NOTEBOOKS if "default_exp" not in n.read_text()], ids=lambda n: n.stem)
def test_parameters_cell_is_tagged(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0]["source"][0].startswith("# Parameters:")


@pytest.mark.parametrize("page", fill_readme.pages(), ids=lambda p: p.stem)
def test_tables_are_in_step(page):
    assert fill_readme.fill(page.read_text()) == page.read_text(), "run `make readme`"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_table_check_can_fail():
    readme = (ROOT / "docs" / "commands.md").read_text()
    changed = readme.replace("| MSE ↓ |", "| MSE ↓ | 0.01 |")
    assert changed != readme and fill_readme.fill(changed) == readme


def test_readme_shows_files_that_exist():
    paths = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert paths and not [p for p in paths if not (ROOT / p).exists()]


def test_results_name_their_run():
    "The committed run says which config, commit and versions made it, and its table agrees with its metrics."
    run = json.loads(fill_readme.committed("results/quick/config.json"))
    assert run["git"]["commit"] and run["git"]["modified"] is False and run["versions"]["torch"]
    metrics = list(csv.DictReader(fill_readme.committed("results/quick/metrics.csv").splitlines()))
    summary = list(csv.DictReader(fill_readme.committed("results/quick/summary.csv").splitlines()))
    assert len(metrics) == 2 * run["config"]["epochs"] and run["config"]["held_out"] is True
    for row in summary:
        assert row["images"] == "photos64 test"
        if row["model"] == "linear":
            continue
        assert float(row["mse"]) < float(row["linear_mse"])  # what a network must at least do
        last = [m for m in metrics if m["model"] == row["model"]][-1]
        assert float(last["mse"]) == float(row["mse"]) and float(last["rate_bits"]) == float(row["rate_bits"])


def test_photographs_are_credited_and_small():
    folder = ROOT / "data" / "photos64"
    rows, sources = (list(csv.DictReader(open(folder / name))) for name in ("photographs.csv", "sources.csv"))
    files = {p.name for p in (folder / "photographs").iterdir()}
    assert {r["file"] for r in rows} == files and len(rows) == len(sources) >= 120
    assert [(r["author"], r["licence"], r["source"]) for r in rows] == [
        (s["author"], s["licence"], s["source"]) for s in sources
    ]
    free = re.compile(r"CC0-1\.0|public-domain|CC-BY(-SA)?-[1-4]\.[05]")
    assert all(free.fullmatch(r["licence"]) for r in rows)
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 12e6
    for c in {r["class"] for r in rows}:
        assert {r["split"] for r in rows if r["class"] == c} == {"train", "test"}


def test_readme_code_runs(tmp_path, monkeypatch):
    photo = Image.open(ROOT / "data" / "photos64" / "photographs" / "014_tool.webp").convert("RGB")
    mask = Image.new("L", photo.size)
    mask.paste(255, (20, 20, 60, 60))
    monkeypatch.chdir(tmp_path)
    photo.save("photo.jpg"), mask.save("face.png"), mask.save("scratches.png")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names = {}
    exec(code, names)
    assert names["face"].size == photo.size and Image.open("clean.png").size == photo.size


def test_ruff_has_nothing_to_say():
    run = subprocess.run(
        [Path(sys.executable).with_name("ruff"), "check", ".", "--output-format", "concise"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout


def test_the_house_keeps_its_size():
    "An exported cell is read at a glance, a module of the method in a screen or five, the page in one."
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text())["cells"]:
            source = "".join(cell["source"]).rstrip()
            if cell["cell_type"] == "code" and source.startswith("#| export"):
                assert source.count("\n") <= 40, f"{notebook.stem}: {source[:80]}"
    modules = [p for p in (ROOT / "saaae").glob("*.py") if p.name[0] != "_"]
    assert len(modules) > 8 and not [p.name for p in modules if len(p.read_text().splitlines()) > 250]
    assert len(dataclasses.fields(Config)) <= 24


def test_at_most_700_files():
    shown = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if shown.returncode == 0:
        assert len(shown.stdout.splitlines()) <= 700
