"The main notebook, run headlessly by papermill as a user runs it, at toy size."

import json, os, signal, subprocess, sys, time

import numpy as np
import pytest
from conftest import ROOT, papermill, rows
from PIL import Image

NOTEBOOK = "SAAAE_image_mask-linear.ipynb"
TOY = dict(epochs=2, width=2, train_images=40, test_images=10, batch_size=16, grid_epochs=[2], device="cpu")


def test_quick_preset(tmp_path):
    run = papermill(NOTEBOOK, tmp_path / "run", preset="quick", **TOY)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "img/s" in run.stdout and "loss" in run.stdout and os.path.relpath(tmp_path / "run", ROOT) in run.stdout
    left = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert left == {
        NOTEBOOK,
        "config.json",
        "metrics.csv",
        "speed.csv",
        "summary.csv",
        "summary.md",
        "curves.png",
        "linear.csv",
        "rate_distortion.png",
        "recon/epoch_0002.png",
        "vae.safetensors",
        "saaae.safetensors",
    }
    metrics, summary = rows(tmp_path / "run" / "metrics.csv"), rows(tmp_path / "run" / "summary.csv")
    assert [(r["model"], r["epoch"]) for r in metrics] == [("vae", "1"), ("saaae", "1"), ("vae", "2"), ("saaae", "2")]
    assert [r["images"] for r in summary][:2] == ["photos64 test"] * 2
    assert [float(r["mse"]) for r in summary[:2]] == [float(r["mse"]) for r in metrics[2:]]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["width"] == 2

    again = papermill(NOTEBOOK, tmp_path / "again", preset="quick", **TOY)
    assert again.returncode == 0
    for name in (
        "metrics.csv",
        "summary.csv",
        "summary.md",
        "config.json",
        "vae.safetensors",
        "saaae.safetensors",
        "recon/epoch_0002.png",
        "curves.png",
        "linear.csv",
        "rate_distortion.png",
    ):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_folder_of_ones_own(tmp_path):
    for i in range(12):
        Image.fromarray(np.full((70, 90, 3), 20 * i, np.uint8)).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "03.png").write_bytes(b"not an image")
    run = papermill(NOTEBOOK, tmp_path / "run", dataset=str(tmp_path), epochs=1, width=2, batch_size=4, device="cpu")
    assert run.returncode == 0, run.stderr[-3000:]
    executed = (tmp_path / "run" / NOTEBOOK).read_text()
    assert "1 of 10 files skipped" in executed and "03.png cannot be read as an image" in executed
    assert {(r["images"], r["n"]) for r in rows(tmp_path / "run" / "summary.csv")} == {(f"{tmp_path.name} test", "2")}


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(epoch=3), "epoch is not a parameter; did you mean epochs?"),
        (dict(epochs="3"), "epochs must be a whole number, not '3'."),
        (dict(batch_size=0), "batch_size must be from 1 to 2147483648, not 0."),
        (dict(dataset="imagenet"), "dataset: 'imagenet' is neither photos64, stl10 nor tiny_imagenet, nor a folder."),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_parameters_are_refused_by_name(cells, tmp_path, wrong, says):
    run = cells(NOTEBOOK, tmp_path / "run", **{**TOY, **wrong})
    assert run.returncode != 0 and says in run.stderr
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize("preset, images", [("stl10", "stl10 test"), ("published", "stl10 train")])
def test_stl10_presets(checkout, preset, images):
    run = papermill(
        NOTEBOOK,
        checkout / "run",
        checkout,
        preset=preset,
        epochs=2,
        width=2,
        attention="patch",
        batch_size=16,
        device="cpu",
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert [r["images"] for r in rows(checkout / "run" / "summary.csv")] [:2] == [images] * 2
    assert (checkout / "data" / "STL10" / "train_64.safetensors").exists()
    if preset == "published":
        assert rows(checkout / "run" / "summary.csv")[1]["rate_bits"] == "inf"


TRAIN = """
import sys
from saaae.sources.load import load_images
from saaae.config import configure
from saaae.training import build_models
from saaae.runs.folder import train
cfg = configure("small", width=2, epochs=30, batch_size=8, image_size=16, train_images=64, patches=2, patch_size=4, \
device="cpu")
train(build_models(cfg), load_images(cfg.dataset, "train", 16, 64), cfg, sys.argv[1], checkpoint_seconds=0)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT], ids=["killed", "ctrl-c"])
def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path, stop):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    subprocess.run([sys.executable, "-c", TRAIN, whole], check=True, capture_output=True)
    run = subprocess.Popen(
        [sys.executable, "-c", TRAIN, stopped],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a shell's background jobs ignore it
    while not (stopped / "checkpoint.safetensors").exists() and run.poll() is None:
        time.sleep(0.001)
    run.send_signal(stop)
    said = run.communicate()[0]
    assert run.returncode != 0 and not (stopped / "vae.safetensors").exists()
    if stop == signal.SIGINT:
        assert "the same call goes on from there" in said
    subprocess.run([sys.executable, "-c", TRAIN, stopped], check=True, capture_output=True)
    for name in ("metrics.csv", "vae.safetensors", "saaae.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name
