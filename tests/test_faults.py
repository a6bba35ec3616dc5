"Faults, each met by the real program: docs/faults.md says what is promised."

import errno, io, json, os, pickle, random, re, signal, subprocess, sys, time
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from conftest import ROOT, Forks, rows
from hypothesis import HealthCheck, Phase, example, given, settings, strategies as st
from PIL import Image

from saaae.lab.pixel_weights import AIMS
from saaae.attention import ATTENTION
from saaae.data import DataError, Images
from saaae.sources.cache import load_cache, save_cache
from saaae.sources.files import read_tensors, read_weights, save_tensors
from saaae.sources.load import load_images
from saaae.sources.photos64 import photos64
from saaae.sources.stl10 import stl10
from saaae.lab.controls import configure
from saaae.lab.gates import GATES
from saaae.models import SAAAE
from saaae.reparameterization import KL_KINDS, NORMALIZATIONS, to_importance
from saaae.config import ConfigError
from saaae.training import TrainingError, build_models
from saaae.runs.checkpoint import CHECKPOINT, PREVIOUS
from saaae.runs.folder import FINISHED, load_run, train, train_or_load

TOY = dict(
    width=2,
    epochs=6,
    batch_size=8,
    image_size=16,
    train_images=16,
    latent=4,
    attention="patch",
    patches=2,
    patch_size=4,
    grid_epochs=(2, 6),
    device="cpu",
)
CFG = configure("small", **TOY)
IMPORTS = """
import os, signal, sys, time
from pathlib import Path
from saaae.sources.load import load_images
from saaae.evaluation import evaluate, plot_grid
from saaae.runs.report import save_figure
from saaae.lab.controls import configure
from saaae.training import build_models
from saaae.runs.folder import train
"""
PROGRAM = f"""{IMPORTS}
cfg = configure("small", **{TOY!r})
images = load_images(cfg.dataset, "train", 16, 16)
def measure(model, epoch): return dict(mse=evaluate(model, images, cfg, ssim=False)["mse"])
def draw(models, epoch): save_figure(plot_grid(models, images, cfg, epoch), \
Path(sys.argv[1])/"recon"/f"epoch_{{epoch:04d}}.png", dpi=30)
def run(): train(build_models(cfg), images, cfg, sys.argv[1], measure, draw, checkpoint_seconds=0)
"""
LEFT = ("metrics.csv", "vae.safetensors", "saaae.safetensors", "recon/epoch_0002.png", "recon/epoch_0006.png")


@pytest.fixture(scope="module")
def forks():
    with Forks(IMPORTS, PYTHONPATH=str(ROOT)) as forks:
        yield forks


@pytest.fixture(scope="module")
def program(forks):
    "Run the program in a folder, with more before the run."
    return lambda folder, before="": forks.run(PROGRAM + before + "\nrun()", folder)


@pytest.fixture(scope="session")
def images():
    return photos64("train", 16, 16)


def quietly(images, folder, cfg=CFG, stop_after=None, evaluate=None):
    "Train in this process; returns what was said. With `stop_after`, stop once that epoch's checkpoint is written."

    class Stop(Exception):
        pass

    def stop(model, epoch):
        if stop_after and epoch > stop_after:
            raise Stop
        return {}

    with redirect_stdout(said := io.StringIO()):
        try:
            train(build_models(cfg), images, replace(cfg, eval_every=1), folder, evaluate or stop, checkpoint_seconds=0)
        except Stop:
            pass
    return said.getvalue()


def flip(path, at, bit=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def same(a, b):
    for name in LEFT:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert (
        json.loads((a / "config.json").read_text())["config"] == json.loads((b / "config.json").read_text())["config"]
    )  # the commit may be another


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    "A run that nothing happened to."
    folder = tmp_path_factory.mktemp("whole")
    run = program(folder)
    assert run.returncode == 0, run.stderr[-2000:]
    return folder


def sentence(error):
    "What is said: one line, not too long, that names the remedy or the file."
    text = str(error.value)
    assert "\n" not in text and len(text) < 900, text
    return text


# One folder, two runs


def test_a_second_run_in_the_folder_is_refused(tmp_path, images):
    hold = "def draw(models, epoch): print('holding', flush=True); time.sleep(60)\n"
    first = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + hold + "run()", tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    try:
        while "holding" not in (line := first.stdout.readline()):
            assert line
        before = (tmp_path / "metrics.csv").read_bytes()
        with pytest.raises(TrainingError) as refused:
            quietly(images, tmp_path)
        assert f"is in use by another run (process {first.pid} on" in sentence(refused)
        assert (tmp_path / "metrics.csv").read_bytes() == before
    finally:
        first.kill()
        first.wait()
    assert "Going on" in quietly(images, tmp_path, replace(CFG, eval_every=CFG.eval_every))  # the kernel let go of it
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("state", ["finished", "unfinished", "only begun"])
def test_a_folder_of_another_config_is_refused(tmp_path, images, state):
    quietly(images, tmp_path, stop_after=None if state == "finished" else 2)
    if state != "unfinished":
        (tmp_path / CHECKPOINT).unlink()
    (tmp_path / PREVIOUS).unlink(missing_ok=True)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(TrainingError) as refused:
        quietly(images, tmp_path, replace(CFG, lr=1e-3, beta=2))
    said = sentence(refused)
    assert (
        "beta = 1.0, not 2; lr = 0.002, not 0.001" in said and "choose another folder" in said and str(tmp_path) in said
    )
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_a_finished_run_of_the_same_config_starts_afresh(tmp_path, images):
    quietly(images, tmp_path)
    (tmp_path / CHECKPOINT).unlink()
    first = (tmp_path / "metrics.csv").read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["device"] = "cuda:1"  # it says where the numbers came from, not what was asked
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "Going on" not in quietly(images, tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == first


# Other images


def other(images, n=None):
    return replace(images, pixels=255 - images.pixels).first(n)


@pytest.mark.parametrize("n", [None, 8])
def test_an_unfinished_run_on_other_images_is_refused(tmp_path, images, n):
    quietly(images, tmp_path, stop_after=2)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(TrainingError) as refused:
        quietly(other(images, n), tmp_path)
    assert "holds an unfinished run on other images" in sentence(refused)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert "Going on" in quietly(images, tmp_path)


def test_a_finished_run_is_used_or_refused_and_never_replaced(tmp_path, images):
    again = lambda images=images, **given: train_or_load(
        build_models(cfg := replace(CFG, epochs=2, grid_epochs=(2,), **given)), images, cfg, tmp_path
    )
    assert again() and not again()
    saved = {p: p.read_bytes() for p in tmp_path.iterdir()}

    def refused(says, **given):
        before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        with pytest.raises(TrainingError) as error:
            again(**given)
        assert says in sentence(error) and str(tmp_path) in str(error.value)
        assert before == {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        for path, content in saved.items():
            if path.is_dir():
                path.rmdir()
            path.write_bytes(content)

    refused("a finished run with beta = 1.0, not 2", beta=2)
    refused("a finished run with other images", images=other(images))
    metrics = (tmp_path / "metrics.csv").read_bytes()
    for bad in (b"", metrics[:-20], metrics.replace(b"vae,1,", b"vae,1,9", 1), metrics.replace(b"m", b"\xff", 1)):
        (tmp_path / "metrics.csv").write_bytes(bad)
        refused("a finished run with other metrics.csv")
    (tmp_path / "metrics.csv").unlink()
    refused("a finished run with other metrics.csv")
    for bad in (b"", saved[tmp_path / FINISHED][:30], b"\xff" + saved[tmp_path / FINISHED]):
        (tmp_path / FINISHED).write_bytes(bad)
        refused("a finished run with other images")
    (tmp_path / FINISHED).unlink()
    (tmp_path / FINISHED).mkdir()
    refused("cannot be read")
    assert not again()


# Damaged checkpoints


def other_version(path):
    tensors, about = read_tensors(path)
    save_tensors(path, tensors, about | dict(format=99))


def other_model(path):
    tensors, about = read_tensors(path)
    save_tensors(path, {k: v[:1] if v.dim() else v for k, v in tensors.items()}, about)


def odd(**said):
    def damage(path):
        tensors, about = read_tensors(path)
        save_tensors(path, tensors, about | said)

    return damage


def link_to_itself(path):
    path.unlink(), path.symlink_to(path)


def other_names(path):
    tensors, about = read_tensors(path)
    save_tensors(path, tensors, about | dict(learners=dict(unet={})))


DAMAGE = dict(
    truncated=lambda p: p.write_bytes(p.read_bytes()[:-9]),
    empty=lambda p: p.write_bytes(b""),
    half=lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    flipped_header=lambda p: flip(p, 30),
    flipped_number=lambda p: flip(p, -40),
    version=other_version,
    model=other_model,
    names=other_names,
    text=lambda p: p.write_bytes(b"hello"),
    zeros=lambda p: p.write_bytes(bytes(4096)),
)
OF_CHECKPOINTS = DAMAGE | dict(
    config_list=odd(config=[]),
    learners_text=odd(learners="vae"),
    later_epoch=odd(epoch=99),
    epoch_text=odd(epoch="3"),
    no_state=odd(learners=dict(vae=3, saaae=None)),
    deep=lambda p: p.write_bytes(safetensors.torch.save({}, dict(saaae="[" * 100_000))),
    loop=link_to_itself,
)


@pytest.mark.parametrize("damage", OF_CHECKPOINTS)
def test_a_bad_checkpoint_is_named_and_the_previous_is_used(tmp_path, images, damage):
    quietly(images, tmp_path / "whole")
    quietly(images, folder := tmp_path / "run", stop_after=3)
    OF_CHECKPOINTS[damage](folder / CHECKPOINT)
    said = quietly(images, folder)
    assert (
        str(folder / CHECKPOINT) in said
        and f"The previous checkpoint is used: {folder / PREVIOUS}." in said
        and "after epoch 2" in said
    )
    for name in ("metrics.csv", "vae.safetensors", "saaae.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_two_bad_checkpoints_are_refused(tmp_path, images):
    quietly(images, tmp_path, stop_after=3)
    flip(tmp_path / CHECKPOINT, -40), (tmp_path / PREVIOUS).write_bytes(b"")
    metrics = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(TrainingError) as refused:
        quietly(images, tmp_path)
    said = sentence(refused)
    assert (
        f"{tmp_path / CHECKPOINT} is damaged: its content is not what was written." in said
        and f"{tmp_path / PREVIOUS} is empty." in said
        and "choose another folder" in said
    )
    assert (tmp_path / "metrics.csv").read_bytes() == metrics


def test_rows_that_were_changed_are_refused(tmp_path, images):
    quietly(images, tmp_path, stop_after=3)
    good = (tmp_path / "metrics.csv").read_text()
    for bad in (good.replace("vae,1,", "vae,1,9", 1), "".join(good.splitlines(keepends=True)[:2]), "", "nonsense\n"):
        (tmp_path / "metrics.csv").write_text(bad)
        with pytest.raises(TrainingError) as refused:
            quietly(images, tmp_path)
        assert "metrics.csv is damaged" in sentence(refused)
    (tmp_path / "metrics.csv").write_text(good)
    assert "Going on" in quietly(images, tmp_path)


# Hostile weights


class Bomb:
    def __reduce__(self):
        return os.system, ("touch executed",)


def header(**entries):
    return json.dumps(entries).encode()


def tensors_file(head, body=b"", length=None):
    return (len(head) if length is None else length).to_bytes(8, "little") + head + body


HOSTILE = dict(
    pickle=lambda: pickle.dumps(Bomb()),
    torch_pickle=lambda: (torch.save(dict(a=Bomb()), f := io.BytesIO()), f.getvalue())[1],
    header_of_exabytes=lambda: tensors_file(b"{}", length=2**63),
    header_past_the_end=lambda: tensors_file(b"{}", length=10**8),
    tensor_of_terabytes=lambda: tensors_file(
        header(a=dict(dtype="F32", shape=[2**40], data_offsets=[0, 2**42])), bytes(64)
    ),
    shape_that_overflows=lambda: tensors_file(header(a=dict(dtype="F32", shape=[2**62, 4], data_offsets=[0, 0]))),
    negative_shape=lambda: tensors_file(header(a=dict(dtype="F32", shape=[-1], data_offsets=[0, 4])), bytes(4)),
    overlapping=lambda: tensors_file(
        header(
            a=dict(dtype="F32", shape=[2], data_offsets=[0, 8]), b=dict(dtype="F32", shape=[2], data_offsets=[4, 12])
        ),
        bytes(12),
    ),
    nested=lambda: tensors_file(b'{"a":' * 100_000),
    path_up=lambda: safetensors.torch.save({"../../x": torch.zeros(1)}),
    path_root=lambda: safetensors.torch.save({"/etc/passwd": torch.zeros(1)}),
    path_windows=lambda: safetensors.torch.save({"a\\..\\x": torch.zeros(1)}),
    nul=lambda: safetensors.torch.save({"a\0b": torch.zeros(1)}),
    header_of_a_megabyte=lambda: tensors_file(b'{"__metadata__":{}' + b" " * 10**7 + b"}"),
    sparse=lambda: tensors_file(
        header(other=dict(dtype="F32", shape=[2**28], data_offsets=[0, 2**30]))
    ),  # made longer where it is written, and takes no room there
    nan=lambda: safetensors.torch.save({"a": torch.tensor([0, float("nan")])}),
    infinite=lambda: safetensors.torch.save({"a": torch.tensor([0, float("inf")])}),
    no_file_format=lambda: b"GIF89a" + bytes(100),
)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weights_are_refused_unopened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    model = SAAAE(16, 2, 4, "patch")
    model.save_pretrained(tmp_path / "hub")
    (path := tmp_path / "hub" / "model.safetensors").write_bytes(HOSTILE[kind]())
    if kind == "sparse":
        os.truncate(path, path.stat().st_size + 2**30)
    like = dict(model.state_dict()) if kind == "sparse" else dict(a=torch.zeros(2))
    with peak_memory() as grown, pytest.raises(DataError) as refused:
        read_weights(path, like)
    assert str(path) in sentence(refused) and ("pickle" in str(refused.value)) == ("pickle" in kind)
    assert grown() < 64e6 and not (tmp_path / "executed").exists()
    with pytest.raises(DataError):
        SAAAE.from_pretrained(tmp_path / "hub")


@contextmanager
def peak_memory():
    "A function that says how many bytes this process held at most in addition, meanwhile (Linux)."
    status = lambda name: 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of before
    before = status("VmRSS")
    yield lambda: status("VmHWM") - before


def test_a_flipped_bit_of_saved_weights_is_refused(tmp_path):
    for name in ("vae", "saaae"):
        assert (
            "saaae"
            in safetensors.safe_open(
                ROOT / "saaae" / "pretrained" / "photos64" / name / "model.safetensors", "pt"
            ).metadata()
        )
    SAAAE(16, 2, 4, "patch").save_pretrained(tmp_path)
    SAAAE.from_pretrained(tmp_path)
    flip(tmp_path / "model.safetensors", -3)
    with pytest.raises(DataError, match="is damaged"):
        SAAAE.from_pretrained(tmp_path)


def test_a_run_with_bad_files_is_refused(tmp_path, images):
    quietly(images, tmp_path)
    saved = {p: p.read_bytes() for p in tmp_path.glob("*.*") if p.is_file()}

    def refused(name, content, says):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TrainingError) as error:
            load_run(tmp_path, "cpu")
        assert str(tmp_path / name) in sentence(error) and says in str(error.value)
        (tmp_path / name).write_bytes(saved[tmp_path / name])

    weights, config = saved[tmp_path / "saaae.safetensors"], saved[tmp_path / "config.json"]
    refused("saaae.safetensors", weights[:-9], "cannot be read")
    refused("saaae.safetensors", b"", "is empty")
    refused("saaae.safetensors", weights[:-40] + bytes([weights[-40] ^ 1]) + weights[-39:], "is damaged")
    refused("saaae.safetensors", saved[tmp_path / "vae.safetensors"], "another model")
    refused("saaae.safetensors", pickle.dumps(Bomb()), "pickle")
    for content in (b"", config[:40], b"[]", b'{"config": 3}', b"\xff" + config):
        refused("config.json", content, "config.json")
    refused("config.json", config.replace(b'"beta"', b'"bet\xc3\xa4"'), "not of this version")
    refused("config.json", config.replace(b'"width": 2', b'"width": "wide"'), "not of this version")
    assert set(load_run(tmp_path, "cpu")[1]) == {"vae", "saaae"}


# Damaged configs, caches and data


def test_a_damaged_config_of_a_folder_is_refused_and_kept(tmp_path, images):
    quietly(images, tmp_path)
    (tmp_path / CHECKPOINT).unlink()
    for content in (b"", b"{", b'{"config": []}', b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(TrainingError) as refused:
            quietly(images, tmp_path)
        assert str(tmp_path / "config.json") in sentence(refused) and (tmp_path / "vae.safetensors").exists()
    (tmp_path / "config.json").write_text(json.dumps(dict(config=dict(dropout=0.5))))  # of a later version
    with pytest.raises(TrainingError) as refused:
        quietly(images, tmp_path)
    assert "dropout = 0.5, not 'known here'" in sentence(refused)


def test_a_damaged_config_of_an_unfinished_run_is_written_again(tmp_path, images):
    quietly(images, tmp_path, stop_after=2)
    (tmp_path / "config.json").write_text("{")
    said = quietly(images, tmp_path)
    assert f"{tmp_path / 'config.json'} was damaged" in said and "after epoch 2" in said
    assert load_run(tmp_path, "cpu")[0].lr == CFG.lr


@pytest.mark.parametrize("damage", ["truncated", "empty", "half", "flipped_header", "flipped_number", "text", "zeros"])
def test_a_damaged_cache_is_made_again(checkout, damage):
    root = checkout / "data" / "STL10"
    with pytest.warns(UserWarning, match="not the official STL-10"):
        good = stl10("train", 16, root)
    DAMAGE[damage](root / "train_16.safetensors")
    assert load_cache(root / "train_16.safetensors") is None
    with pytest.warns(UserWarning, match="train_16.safetensors is damaged and is made again"):
        again = stl10("train", 16, root)
    assert again.sha256() == good.sha256() == load_cache(root / "train_16.safetensors").sha256()


def test_damaged_data_files_are_named(checkout, tmp_path):
    binary = checkout / "data" / "STL10" / "stl10_binary" / "train_X.bin"
    for content in (binary.read_bytes()[:-1], b""):
        binary.write_bytes(content)
        with pytest.raises(DataError) as refused:
            stl10("train", 16, checkout / "data" / "STL10")
        assert "STL-10" in sentence(refused)
    (tmp_path / "photos").mkdir()
    source = next((ROOT / "data" / "photos64" / "photographs").glob("*.*")).read_bytes()
    for name, content in dict(a=source[: len(source) // 2], b=b"", c=b"text").items():
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(content)
    with pytest.raises(DataError, match="no readable image"), pytest.warns(UserWarning, match="files skipped"):
        load_images(str(tmp_path / "photos"), "train", 16)


@pytest.mark.parametrize("name", ["photos", "n" * 250, os.fsdecode(b"caf\xe9")], ids=["plain", "long", "latin-1"])
def test_odd_folders_are_read_or_named(tmp_path, monkeypatch, name):
    (folder := tmp_path / name).mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "0.png")
    with pytest.raises(DataError, match="has one image, which is kept for the test"):
        load_images(str(folder), "train", 16)
    os.mkfifo(folder / "pipe.png")
    Image.new("RGB", (20, 20), "blue").save(folder / "1.png")
    for home in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(home, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user whom the system does not know
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with pytest.warns(UserWarning, match="pipe.png is left out") as said:
        assert len(load_images(str(folder), "train", 16)) == 1
    for warning in said:
        str(warning.message).encode()  # of whatever name, it can be shown
    assert list(tmp_path.glob("saaae/*/train_16.safetensors"))
    with pytest.raises(DataError, match="neither photos64, stl10 nor tiny_imagenet, nor a folder"):
        load_images("a" * 5000, "train", 16)


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    "A real disk of 8 MB, where we may mount one."
    (disk := tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk, leave):
    "Leave so many bytes free."
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - leave)))


def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk, images, tmp_path):
    quietly(images, tmp_path / "whole")
    quietly(images, folder := small_disk / "run", stop_after=2)
    size = (folder / CHECKPOINT).stat().st_size
    fill(small_disk, size // 2)  # half of the next one
    with pytest.raises(TrainingError) as stopped:
        quietly(images, folder)
    assert "The disk is full" in sentence(stopped) and f"{folder / CHECKPOINT} keeps epoch 2" in str(stopped.value)
    assert not list(folder.glob("*.part"))
    (small_disk / "filler").unlink()
    assert "Going on" in quietly(images, folder)
    for name in ("metrics.csv", "vae.safetensors", "saaae.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


LIMIT = """
import resource
def limit(n): resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))
"""
CUT = dict(
    config="limit(0)",
    checkpoint="limit(30_000)",
    grid="plain = draw\ndef draw(models, epoch): limit(2_000), plain(models, epoch)",
)


@pytest.mark.parametrize("what", CUT)
def test_a_write_that_is_cut_off(tmp_path, program, whole, what):
    """The kernel ends each write after so many bytes: half a checkpoint after the first epoch, half a grid in the
    second."""
    run = program(tmp_path, LIMIT + CUT[what])
    said = run.stderr.strip().splitlines()[-1]
    assert run.returncode and said.startswith("saaae.training.TrainingError: The disk is full"), run.stderr[-500:]
    assert ("keeps epoch 1" if what == "grid" else "No checkpoint was written yet") in said
    assert (
        not list(tmp_path.rglob("*.part"))
        and not list(tmp_path.rglob("*.png"))
        and (tmp_path / CHECKPOINT).exists() == (what == "grid")
    )
    again = program(tmp_path)
    assert again.returncode == 0, again.stderr[-500:]
    same(whole, tmp_path)


def test_a_full_disk_keeps_a_cache(small_disk, images):
    save_cache(path := small_disk / "train_16.safetensors", images)
    good = path.read_bytes()
    fill(small_disk, len(good) // 2)
    with pytest.raises(OSError) as full:
        save_cache(path, images.first(15))
    assert (
        full.value.errno == errno.ENOSPC and path.read_bytes() == good and load_cache(path).sha256() == images.sha256()
    )


def test_a_full_disk_is_said_where_stl10_is_cached(checkout, small_disk):
    root = small_disk / "STL10"
    (root / "stl10_binary").mkdir(parents=True)
    for path in (checkout / "data" / "STL10" / "stl10_binary").glob("train*"):
        (root / "stl10_binary" / path.name).write_bytes(path.read_bytes())
    fill(small_disk, 8192)
    with pytest.raises(DataError) as full, pytest.warns(UserWarning):
        stl10("train", 64, root)
    assert "is full" in sentence(full) and not list(root.glob("*.safetensors")) and not list(root.glob("*.part"))


# Killed

KILL = """
plain = os.replace
def dying(part, path):
    if "{when}" == "before" and Path(path).name == "{name}": os.kill(os.getpid(), signal.SIGKILL)
    plain(part, path)
    if "{when}" == "after" and Path(path).name == "{name}": os.kill(os.getpid(), signal.SIGKILL)
os.replace = dying
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_as_it_writes(tmp_path, program, whole, when):
    """Killed just before and after a written file gets its name: the config, both checkpoints, grids, weights. One
    folder, killed again and again."""
    for name in (
        "config.json",
        CHECKPOINT,
        "epoch_0002.png",
        PREVIOUS,
        "epoch_0006.png",
        "vae.safetensors",
        "saaae.safetensors",
    ):
        run = program(tmp_path, KILL.format(name=name, when=when))
        assert run.returncode == -signal.SIGKILL, (name, run.stderr[-500:])
    run = program(tmp_path)
    assert run.returncode == 0, run.stderr[-500:]
    same(whole, tmp_path)
    assert not list(tmp_path.rglob("*.part")) and not (tmp_path / PREVIOUS).exists()


@pytest.mark.slow
def test_killed_twenty_times_at_random(tmp_path, forks, program, whole):
    "Twenty kills in one folder, at moments drawn over what is left of the run, each gone on from."
    rng, kills = random.Random(0), 0
    while kills < 20:
        process = forks.start(PROGRAM + "\nrun()", tmp_path)
        time.sleep(rng.uniform(0, 1.2))
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        if forks.end().returncode == 0:  # it was done before: the next one begins again, and is killed sooner or later
            same(whole, tmp_path)
            (tmp_path / CHECKPOINT).unlink()
        else:
            kills += 1
    last = program(tmp_path)
    assert last.returncode == 0, last.stderr[-500:]
    same(whole, tmp_path)


# Numbers and sizes at their edges


def edge_images(n, value=None):
    pixels = (
        torch.full((n, 3, 16, 16), value, dtype=torch.uint8)
        if value is not None
        else torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    return Images(pixels, torch.zeros(n, dtype=torch.int64), torch.arange(n), ("a",), "edge")


@pytest.mark.parametrize(
    "n, value",
    [(1, None), (3, None), (9, None), (8, 0), (8, 255), (1, 127)],
    ids=["one", "fewer than a batch", "one more", "black", "white", "one grey"],
)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_few_and_constant_images_train(tmp_path, n, value, normalize):
    quietly(edge_images(n, value), tmp_path, replace(CFG, epochs=2, grid_epochs=(2,), normalize=normalize))
    assert (
        all(np.isfinite(float(r["train_loss"])) for r in rows(tmp_path / "metrics.csv"))
        and len(rows(tmp_path / "metrics.csv")) == 4
    )
    for model in load_run(tmp_path, "cpu")[1].values():
        assert all(p.isfinite().all() for p in model.parameters())


def test_no_images_are_refused(tmp_path):
    with pytest.raises(TrainingError) as refused:
        quietly(edge_images(0), tmp_path)
    assert "edge has no images to train on" in sentence(refused) and not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("spoil", ["nan", "infinite", "exploding"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, images, spoil):
    "After two good epochs the weights become NaN or infinite, or so large that the gradients explode."
    value = dict(nan=float("nan"), infinite=float("inf"), exploding=1e30)[spoil]

    def evaluate(model, epoch):
        if epoch == 3:
            model.to_mu.weight.data.fill_(value)
        return {}

    with pytest.raises(TrainingError) as stopped:
        quietly(images, tmp_path, evaluate=evaluate)
    said = sentence(stopped)
    assert "finite" in said or "The loss is" in said
    assert "the run stopped" in said and f"{tmp_path / CHECKPOINT} keeps epoch" in said and "lower lr" in said
    for path in (tmp_path / CHECKPOINT, tmp_path / PREVIOUS):
        assert all(t.isfinite().all() for t in read_tensors(path)[0].values() if t.is_floating_point())
    assert not (tmp_path / "vae.safetensors").exists()


FIELDS = dict(
    image_size=st.sampled_from([0, 15, 16, 32, 48, 512]),
    latent=st.sampled_from([0, 1, 2, 7, "spatial", "round"]),
    batch_size=st.sampled_from([0, 1, 2, 3, 10**6, 2**63]),
    width=st.sampled_from([0, 1, 2]),
    attention=st.sampled_from(list(ATTENTION)),
    floor=st.sampled_from([0, 0.1, 1, 2]),
    normalize=st.sampled_from(NORMALIZATIONS),
    gate=st.sampled_from(list(GATES)),
    gate_value=st.sampled_from([None, None, 0, 0.5, 1]),
    kl=st.sampled_from(KL_KINDS),
    beta=st.sampled_from([0, 1e-3, 1, 100, 10**400]),
    decoder_variance=st.sampled_from(["fixed", "optimal"]),
    noise_bank=st.booleans(),
    noise_std=st.sampled_from([0, 0.5, 10]),
    noise_varies=st.booleans(),
    shared_masks=st.booleans(),
    patches=st.sampled_from([0, 1, 16]),
    patch_size=st.sampled_from([0, 1, 15, 16]),
    t_range=st.sampled_from([1, 1, 4, 1e6]),
    multirate=st.sampled_from(["tempered", "tempered", "conditioned", "both"]),
    hold_mean=st.booleans(),
    regions=st.booleans(),
    trains=st.sampled_from(["everything", "decoder"]),
    lr=st.sampled_from([0, 1e-8, 1e-3]),
    arithmetic=st.sampled_from(["float32", "float32", "tf32", "bf16"]),
    schedule=st.sampled_from(["constant", "one-cycle"]),
    seed=st.sampled_from([-1, 0, 2**32 - 1]),
    epochs=st.sampled_from([0, 1, 2, 2, 10**400]),
    eval_every=st.sampled_from([0, 1, 5, 10**30]),
    train_images=st.sampled_from([0, 1, 3, None]),
    grid_epochs=st.sampled_from([(), (1,), (0,), [2, 2]]),
    classes=st.sampled_from([0, 0, 1, 3, 7, 10**30]),
    aim=st.sampled_from(list(AIMS)),
    balance=st.sampled_from([0, 0.25, 1, 2]),
    device=st.sampled_from(["cpu", "auto", "meta", "gpu", "hpu"]),
    preset=st.sampled_from(["small", "small", "slow"]),
)


TRAINED = []


@settings(
    max_examples=300,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@example(given=dict(latent="spatial", t_range=4, regions=True))
@example(given=dict(latent="spatial", image_size=32, batch_size=1))
@example(given=dict(multirate="both", t_range=1e6))
@example(given=dict(classes=2))
@example(given=dict(image_size=512, attention="linear"))
@example(given=dict(width=2000))
@given(given=st.fixed_dictionaries({}, optional=FIELDS))
def test_any_config_trains_or_is_refused_by_name(tmp_path_factory, given):
    folder = tmp_path_factory.mktemp("config")
    try:
        cfg = configure(**{**TOY, "preset": "small", "epochs": 2, "grid_epochs": (1,)} | given)
        images = torch.randint(
            0,
            256,
            (cfg.train_images or 3, 3, cfg.image_size, cfg.image_size),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(0),
        )
        quietly(
            Images(images, torch.arange(len(images)), torch.arange(len(images)), ("a", "b", "c"), "edge"), folder, cfg
        )
    except ConfigError as refused:
        said = str(refused)
        assert "\n" not in said and any(re.search(rf"\b{name}\b", said) for name in given), (
            said
        )  # what was given, not any field
        return
    assert all(np.isfinite(float(r["train_loss"])) for r in rows(folder / "metrics.csv"))
    TRAINED.append(cfg)


def test_enough_of_those_configs_trained():
    if not TRAINED:
        pytest.skip("goes with the test before it")
    assert len(TRAINED) >= 30 and {True, False} == {cfg.latent == "spatial" for cfg in TRAINED} == {
        cfg.t_range > 1 for cfg in TRAINED
    }


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from(NORMALIZATIONS),
    st.lists(
        st.one_of(st.sampled_from([0.0, 1e-45, 1e-30, 1e30, 1e38, -1e38]), st.floats(-1e6, 1e6, width=32)),
        min_size=2,
        max_size=6,
    ),
    st.booleans(),
)
def test_importance_of_extreme_scores_is_in_range(normalize, scores, equal):
    a = to_importance(torch.tensor([[scores[0]] * len(scores)] * 2 if equal else [scores, scores[::-1]]), normalize)
    assert a.isfinite().all() and a.min() >= 0 and a.max() <= 1


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_scores_without_a_value_are_passed_on_as_such(normalize):
    "So that the loss is not finite and the run stops, rather than go on with a made-up importance."
    assert not to_importance(torch.tensor([[float("nan"), 0, 1], [0, 1, 2]]), normalize).isfinite().all()
    if normalize != "sigmoid":
        assert (
            not to_importance(torch.tensor([[3e38, -3e38]]), normalize).isfinite().all()
        )  # their difference is beyond float32


# Long runs


def test_two_thousand_steps_take_no_more_memory(tmp_path):
    "Memory and live tensors after 400 steps, and after 2,000."
    import gc

    cfg, seen = replace(CFG, epochs=500, eval_every=1, schedule="constant", grid_epochs=(500,)), {}

    def evaluate(model, epoch):
        if epoch in (100, 500) and epoch not in seen:
            gc.collect()
            seen[epoch] = psutil.Process().memory_info().rss, sum(torch.is_tensor(o) for o in gc.get_objects())
        return {}

    with redirect_stdout(io.StringIO()):
        train(build_models(cfg), edge_images(32), cfg, tmp_path, evaluate, checkpoint_seconds=1)
    (rss, tensors), (rss_after, tensors_after) = seen[100], seen[500]
    assert rss_after - rss < 16e6 and tensors_after <= tensors + 10
