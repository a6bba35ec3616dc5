"""What tests share: notebooks run by papermill, a miniature STL-10, and the closing line that counts: `N passed, N
failed`."""

import csv, json, os, shutil, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
CACHE = tempfile.TemporaryDirectory(prefix="saaae-cache-")  # of this session: not the user's
os.environ["XDG_CACHE_HOME"] = CACHE.name
ROOT = Path(__file__).parent.parent


def papermill(notebook, out, root=ROOT, **parameters):
    "Run a notebook of a checkout as a user does, with `out` as its folder; returns the finished process."
    out.mkdir(parents=True, exist_ok=True)
    given = "\n".join(f"{k}: {json.dumps(v)}" for k, v in dict(parameters, out=str(out)).items())
    command = [
        Path(sys.executable).with_name("papermill"),
        next((root / "nbs").rglob(notebook)),
        out / notebook,
        "-k",
        "python3",
        "-y",
        given,
        "--no-progress-bar",
        "--log-level",
        "ERROR",
        "--stdout-file",
        "/dev/stdout",
    ]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(root)))


def rows(path):
    return list(csv.DictReader(open(path)))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes a minute or more; `make test-slow` runs these alone")


@pytest.fixture
def checkout(tmp_path):
    "A copy of the repository with a miniature STL-10 in its official binary layout."
    root = tmp_path / "checkout"
    for name in ("nbs", "saaae", "data/published", "data/masks"):
        shutil.copytree(ROOT / name, root / name)
    folder, rng = root / "data" / "STL10" / "stl10_binary", np.random.RandomState(0)
    folder.mkdir(parents=True)
    for split, n in dict(train=40, test=12, unlabeled=20).items():
        rng.randint(0, 256, (n, 3, 96, 96)).astype(np.uint8).tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            (np.arange(n) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("airplane bird car cat deer dog horse monkey ship truck".split()))
    return root


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    CACHE.cleanup()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    count = lambda *kinds: sum(len(reporter.stats.get(kind, [])) for kind in kinds)
    passed, failed = count("passed"), count("failed", "error")
    if passed + failed:
        print(f"{passed} passed, {failed} failed")
