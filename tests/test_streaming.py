"""Data larger than memory: caches are built as a stream and read mapped, by one process or several, on disks that are
full or may not be written."""

import os, subprocess, sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from saaae.sources.folder import folder_images
from saaae.sources.photos64 import photos64

MEASURE = """
import re, sys
import numpy as np
from pathlib import Path
from saaae.data import batches
from saaae.sources.cache import gather, open_cache, write_cache
from saaae.sources.stl10 import stl10
import torch
torch.set_num_threads(1)
def anonymous(): return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # MB
def most(images):
    "The most anonymous memory while one epoch of batches is read, in MB above `start`; each image tells its number."
    seen, peak = torch.zeros(len(images), dtype=torch.bool), 0
    for x in batches(images, 256, seed=0, epoch=1):
        bytes_ = ((x[:, :, 0, 0] + 1) * 127.5).round().long()
        seen[(bytes_ * torch.tensor([1, 256, 65536])).sum(1)] = True
        peak = max(peak, anonymous() - start)
    assert seen.all()
    return peak
"""

HUNDRED_THOUSAND = (
    MEASURE
    + """
n, size, path = 100_000, 32, Path(sys.argv[1])
picture = np.zeros((3, size, size), np.uint8)
def pictures():
    global peak
    for i in range(n):
        picture[:, 0, 0] = [i & 255, i >> 8 & 255, i >> 16]
        if i % 1000 == 0: peak = max(peak, anonymous() - start)
        yield picture.copy(), i % 10, i
about = dict(classes=[str(c) for c in range(10)], name="numbers")
next(batches(gather(about, [(picture, 0, 0)] * 256), 256))  # what torch needs in any case
start, peak = anonymous(), 0
if sys.argv[2] == "mapped":
    write_cache(path, about, pictures())
    images = open_cache(path)[0]
else: images = gather(about, pictures())
assert len(images) == n and images.first(None).sha256() == images.sha256() and images.labels[-1] == 9 and \
images.groups[-1] == n - 1
print(peak, most(images), images.pixels.nbytes / 2**20)
"""
)


def child(program, *args, **how):
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", **how),
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_memory_stays_flat_at_100_000_images(tmp_path):
    """Made, checked and read in a random order: the images are 293 MB, and the memory that is this process's own grows
    by a tenth of that at most."""
    mapped = [float(v) for v in child(HUNDRED_THOUSAND, tmp_path / "cache.safetensors", "mapped").split()]
    held = [float(v) for v in child(HUNDRED_THOUSAND, tmp_path / "cache.safetensors", "held").split()]
    print("MB while made, while read, of the images:", mapped, held)
    assert max(mapped[:2]) < 30 < 290 < held[0] and held[1] > 290


STL10 = (
    MEASURE
    + """
import warnings
warnings.simplefilter("ignore")
root, size = Path(sys.argv[1]), 8
start = anonymous()
images = stl10("unlabeled", size, root)
print(anonymous() - start, len(images), images.pixels[-1].float().mean().item())
"""
)


def test_stl10_is_read_without_loading_its_file(tmp_path):
    """A file in the layout of STL-10's unlabeled split, with holes for its 6,000 images (166 MB): its last image is
    the one that was put there."""
    (folder := tmp_path / "stl10_binary").mkdir()
    with open(folder / "unlabeled_X.bin", "wb") as f:
        f.seek(5_999 * 3 * 96 * 96)
        f.write(np.full((3, 96, 96), 77, np.uint8).tobytes())
    (folder / "class_names.txt").write_text("a")
    grown, n, last = child(STL10, tmp_path).split()
    assert (int(n), float(last)) == (6000, 77) and float(grown) < 60, grown


BUILD = """
import sys, warnings
warnings.simplefilter("error")
from saaae.sources.folder import folder_images
print(folder_images(sys.argv[1], "train", 16).sha256())
"""


@pytest.fixture
def folder(tmp_path):
    "300 images in a class of their own each third."
    rng = np.random.RandomState(0)
    for i in range(300):
        (tmp_path / "own" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(
            tmp_path / "own" / str(i % 3) / f"{i:03}.png"
        )
    return tmp_path / "own"


def test_several_processes_build_at_once(folder, tmp_path):
    env = dict(os.environ, PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(tmp_path / "cache"), OMP_NUM_THREADS="1")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    said = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 3, said
    assert {out.strip() for out, _ in said} == {folder_images(folder, "train", 16).sha256()}
    assert [p.name for p in (tmp_path / "cache").rglob("*.*")] == ["train_16.safetensors"]


def test_killed_while_building(folder, tmp_path):
    "SIGKILL at the 100th image: half a file is left under another name, and goes with the next build."
    die = BUILD.replace(
        "print",
        """import os, signal
from saaae.sources import folder
plain, n = folder.read_image, 0
def read_image(path):
    global n
    n += 1
    if n == 100: os.kill(os.getpid(), signal.SIGKILL)
    return plain(path)
folder.read_image = read_image
print""",
    )
    env = dict(os.environ, PYTHONPATH=str(ROOT), XDG_CACHE_HOME=str(tmp_path / "cache"), OMP_NUM_THREADS="1")
    assert subprocess.run([sys.executable, "-c", die, folder], env=env, cwd=ROOT).returncode == -9
    names = lambda: [p.name for p in (tmp_path / "cache").rglob("*.*")]
    assert len(names()) == 1 and names()[0].endswith(".part")
    assert (
        child(BUILD, folder, XDG_CACHE_HOME=env["XDG_CACHE_HOME"]).strip()
        == folder_images(folder, "train", 16).sha256()
    )
    assert names() == ["train_16.safetensors"]


CANNOT = """
import resource, sys, warnings
if sys.argv[2] == "full": resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
from saaae.sources.folder import folder_images
from saaae.sources.photos64 import photos64
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(folder_images(sys.argv[1], "train", 16).sha256(), photos64("test", size=8).sha256())
print(*(w.message for w in said), sep="\\n")
"""


@pytest.mark.parametrize("how", ["full", "no_folder"])
def test_a_cache_that_cannot_be_written(folder, tmp_path, how):
    "The same images, and one sentence for each data set; nothing is left."
    (tmp_path / "file").touch()
    cache = tmp_path / ("cache" if how == "full" else "file")
    got, *said = child(CANNOT, folder, how, XDG_CACHE_HOME=str(cache)).strip().splitlines()
    assert got.split() == [folder_images(folder, "train", 16).sha256(), photos64("test", size=8).sha256()]
    assert len(said) == 2 and all("cannot be written (" in s and "kept in memory" in s for s in said), said
    assert not [p for p in cache.rglob("*.*")] if cache.is_dir() else cache.read_bytes() == b""


START = """
import sys
from torch.optim.optimizer import register_optimizer_step_post_hook
from saaae.sources.load import load_images
from saaae.config import configure
from saaae.training import build_models
from saaae.runs.folder import train
cfg = configure("small", device="cpu", width=2, image_size=16, patch_size=4, batch_size=8)
def first_step(*_):
    print("\\nimported:", *sorted({"pandas", "matplotlib", "scipy", "sklearn", "torchmetrics", "constriction", \
"accelerate", "IPython"} & set(sys.modules)))
    raise SystemExit
register_optimizer_step_post_hook(first_step)
train(build_models(cfg), load_images(cfg.dataset, "test", cfg.image_size, 8), cfg, sys.argv[1])
"""


def test_a_run_starts_without_what_only_figures_need(tmp_path):
    "How many seconds that takes is measured by the benchmark; here only that nothing is imported for nothing."
    assert "imported:" in child(START, tmp_path).splitlines()
