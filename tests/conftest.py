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


class Forks:
    """Programs that each run in a process of their own, forked from one that has imported what they need: torch alone
    takes seconds."""

    SERVER = """
import json, os, sys, traceback
for line in sys.stdin:
    code, argv = json.loads(line)
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        print(child, flush=True)
        with os.fdopen(read, errors="replace") as f: said = f.read()
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
        continue
    for stream in (1, 2): os.dup2(write, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv, failed = ["-c", *argv], 0
    try: exec(code, dict(__name__="__main__"))
    except SystemExit as e: failed = e.code
    except BaseException:
        traceback.print_exc()
        failed = 1
    sys.stdout.flush()
    os._exit(int(failed or 0))
"""

    def __init__(self, imports, cwd=ROOT, **env):
        command = [sys.executable, "-c", imports + self.SERVER]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env=os.environ | env
        )

    def start(self, code, *argv):
        "Begin a program; returns its process."
        print(json.dumps([code, [*map(str, argv)]]), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def end(self):
        "Wait for the program that runs; returns it as `subprocess.run` would, all that it said in `stderr`."
        code, said = json.loads(self.server.stdout.readline())
        return subprocess.CompletedProcess([], code, "", said)

    def run(self, code, *argv):
        self.start(code, *argv)
        return self.end()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


IMPORTS = """
import pandas, torch, torchvision, torchmetrics.functional.image, matplotlib.pyplot
import IPython.core.interactiveshell, nbdev.test, papermill.iorw, papermill.parameterize
"""
CELLS = """
import sys, json
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
notebook = parameterize_notebook(load_notebook_node(sys.argv[1]), json.loads(sys.argv[2]))
shell = InteractiveShell.instance(colors="nocolor")
shell.history_manager.enabled = False
for cell in notebook.cells:
    if cell.cell_type != "code": continue
    if not shell.run_cell(cell.source, store_history=True).success: sys.exit(1)
"""


@pytest.fixture(scope="session")
def forks():
    "Programs of this session that have imported what most notebooks need."
    with Forks(IMPORTS, PYTHONPATH=str(ROOT)) as programs:
        yield programs


@pytest.fixture
def cells(forks):
    """The cells of a notebook with parameters as papermill gives them, `out` among them, until one fails: without a
    kernel, which takes seconds to start."""

    def run(notebook, out, **parameters):
        out.mkdir(parents=True, exist_ok=True)
        return forks.run(CELLS, next((ROOT / "nbs").rglob(notebook)), json.dumps(dict(parameters, out=str(out))))

    return run


def rows(path):
    return list(csv.DictReader(open(path)))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes a minute or more; `make test-slow` runs these alone")


LONG = "test_wheel test_evidence test_notebooks test_docs test_experiment test_precision test_faults".split()


def pytest_collection_modifyitems(items):
    "Files that take longest first: then no process waits at the end for another."
    items.sort(key=lambda item: [*LONG, item.path.stem].index(item.path.stem))


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
