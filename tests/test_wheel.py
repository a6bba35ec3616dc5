"The package as others get it: sdist and wheel, installed where the checkout is not."

import os, re, shutil, subprocess, sys, tarfile, zipfile
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
SHIPPED = {
    f"saaae/pretrained/photos64/{name}"
    for name in (
        "README.md",
        "run.json",
        "metrics.csv",
        "summary.csv",
        *(f"{m}/{f}" for m in ("vae", "saaae") for f in ("config.json", "model.safetensors")),
    )
} | {
    f"saaae/pretrained/pictures/{name}"
    for name in ("README.md", "codec.safetensors", "importance.safetensors", "restorer.safetensors")
}
SHIPPED |= {f"saaae/samples/{name}" for name in ("README.md", "bridge.webp", "cathedral.webp", "panda.webp")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The folder with the sdist, and the wheel that was built from it."
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True, text=True
    ).stdout.split("\0")[:-1]
    for name in tracked:  # what a fresh clone has; of the bulky folders one file each is enough to see it left out
        if name.startswith(("results/", "data/")) and name not in (
            "data/photos64/README.md",
            "results/quick/summary.md",
        ):
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return dist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs a command line where only the installed wheel is importable, away from the checkout; returns the finished
    process."""
    target, away = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("away")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            target,
            next(built.glob("*.whl")),
        ],
        check=True,
        capture_output=True,
    )

    def run(*line):
        return subprocess.run(
            [sys.executable, *map(str, line)],
            cwd=away,
            capture_output=True,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(target), HF_HUB_OFFLINE="1"),
        )

    where = run("-c", "import saaae; print(saaae.__file__)").stdout.strip()
    assert where == str(target / "saaae" / "__init__.py")
    run.command = target / "bin" / "saaae"
    run.away = away
    return run


def test_wheel_has_the_package_and_nothing_else(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as f:
        names = {n for n in f.namelist() if ".dist-info/" not in n}
    modules = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("saaae/**/*.py")}
    assert names == modules | SHIPPED | {"saaae/py.typed"}


def test_sdist_has_what_the_wheel_needs_and_no_experiments(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as f:
        names = {n.split("/", 1)[1] for n in f.getnames() if "/" in n}
    assert names >= SHIPPED | {"setup.py", "settings.ini", "README.md", "LICENSE", "CHANGELOG.md", "saaae/py.typed"}
    assert not [n for n in names if n.startswith(("tests", "nbs", "results", "data"))]


def test_import_is_light(installed):
    run = installed("-c", "import sys, saaae; print('torch' in sys.modules)")
    assert run.stdout.strip() == "False"


def run_time_distributions(wheel):
    "What `pip install` of the wheel installs: its requirements and theirs, without extras, by normalised name."
    with zipfile.ZipFile(wheel) as f:
        said = f.read(next(n for n in f.namelist() if n.endswith(".dist-info/METADATA"))).decode()
    named = lambda needs: [
        re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", need)[0]).lower() for need in needs if "extra ==" not in need
    ]
    found, queue = set(), named(re.findall(r"^Requires-Dist: (.*)$", said, re.M))
    while queue:
        if (name := queue.pop()) in found:
            continue
        found.add(name)
        try:
            queue += named(metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            continue  # of another platform
    return found


ONLY = """
import sys
class Without:
    "A finder that does not find what the wheel does not install."
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None): return None if name.split(".")[0] in hidden else \
self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
"""


def test_runs_with_the_run_time_dependencies_only(built, installed):
    """All but the modules for notebooks, whose extra is `explore`; anything else than the requirements cannot be
    imported."""
    kept = run_time_distributions(next(built.glob("*.whl")))
    mask = (
        {
            top
            for top, owners in metadata.packages_distributions().items()
            if not {re.sub(r"[-_.]+", "-", o).lower() for o in owners} & kept
        }
        - {"saaae", "regex"}
        - sys.stdlib_module_names
    )  # torchmetrics asks whether regex is installed, not whether it can be imported
    assert {"nbdev", "pytest", "accelerate", "pythae", "papermill"} <= mask and not {
        "torch",
        "pandas",
        "safetensors",
    } & mask
    modules = sorted(p for p in ROOT.glob("saaae/**/[!_]*.py") if p.stem not in ("explorer", "watching", "sweep"))
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in modules]
    program = f"hidden = {mask!r}{ONLY}" + "".join(f"import {name}\n" for name in names)
    program += "from saaae.tools.cli import main\nsys.exit(main(['info', 'photos64']))"
    run = installed("-c", program)
    assert run.returncode == 0 and "photos64" in run.stdout, run.stderr[-2000:]
    assert "No module named 'nbdev'" in installed("-c", f"hidden = {mask!r}{ONLY}import nbdev").stderr


def test_shipped_models_load_offline_and_the_name_is_not_a_folder_here(installed):
    (installed.away / "photos64").mkdir(exist_ok=True)  # empty: loading it would fail
    run = installed(
        "-c",
        "from saaae.models import SAAAE, VAE; print([type(k.from_pretrained('photos64')).__name__ for k in (SAAAE, "
        "VAE)])",
    )
    assert run.returncode == 0 and run.stdout.endswith("['SAAAE', 'VAE']\n"), run.stderr


def test_command_is_installed_and_works(installed):
    assert installed(installed.command, "--version").stdout.startswith("saaae ")
    said = installed(installed.command, "info", "photos64").stdout
    assert "vae/model.safetensors" in said and "epoch 30 of 30" in said
    (installed.away / "mine").mkdir()
    for i in range(2):
        Image.new("RGB", (90, 70), (200 * i, 90, 30)).save(installed.away / "mine" / f"{i}.jpg")
    done = installed(installed.command, "reconstruct", "mine", "--out", "rebuilt", "--rate", 40)
    assert done.returncode == 0 and "2 of 2 images" in done.stdout and "40.0 bits" in done.stdout, done.stderr
    assert {p.name for p in (installed.away / "rebuilt").iterdir()} == {"0.jpg.png", "1.jpg.png", "reconstructions.csv"}
    demo = installed(installed.command, "demo")
    assert demo.returncode == 0 and Image.open(installed.away / "saaae_demo.png").width > 2000, demo.stderr
    lacking = installed(installed.command, "evaluate", "photos64")
    assert lacking.returncode == 1 and lacking.stderr.count("\n") == 1 and "--dataset FOLDER" in lacking.stderr
    assert installed(installed.command, "evaluate", "photos64", "--dataset", "mine").returncode == 0


@pytest.mark.slow
def test_in_an_environment_that_has_never_seen_the_repository(built, tmp_path):
    "The wheel and what it requires, at the versions of the lock file, in a virtual environment of its own."
    python, away, images = tmp_path / "env" / "bin" / "python", tmp_path / "away", tmp_path / "images"
    for folder in (away, images):
        folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(*line):
        return subprocess.run([*map(str, line)], cwd=away, capture_output=True, text=True, env=environment)

    install = run(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        ROOT / "requirements.lock",
        next(built.glob("*.whl")),
    )
    assert install.returncode == 0, install.stderr[-2000:]
    assert "No module named" in run(python, "-c", "import jupyterlab").stderr
    assert run(python, "-c", "import sys, saaae; print('torch' in sys.modules)").stdout.strip() == "False"
    for i in range(12):
        Image.effect_noise((70, 64), 20 + 9 * i).convert("RGB").save(images / f"{i}.png")
    command = python.with_name("saaae")
    for line, says in (
        (
            (
                "train",
                "--dataset",
                images,
                "--out",
                "run",
                "--epochs",
                1,
                "--width",
                2,
                "--batch-size",
                4,
                "--device",
                "cpu",
            ),
            "SAAAE",
        ),
        (("evaluate", "run"), "mean gate"),
        (("info", "run"), "quick"),
        (("reconstruct", images, "--out", "rebuilt", "--rate", 60), "12 of 12 images"),
        (("encode", images, "--out", "streams", "--bytes", 700), "11.saz"),
        (("decode", "streams", "--out", "decoded"), "11.png: 70x64"),
        (("demo",), "saaae_demo.png"),
    ):
        done = run(command, *line)
        assert done.returncode == 0 and says in done.stdout, (line, done.stdout, done.stderr[-2000:])
    assert len(list((away / "rebuilt").glob("*.png"))) == 12
    assert run(command, "train", "--out", "other", "--epochs", "many").returncode != 0
    shutil.rmtree(tmp_path / "env")  # 5 GB
