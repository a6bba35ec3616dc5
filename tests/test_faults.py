"Faults, each met by the real program: docs/faults.md says what is promised."
import errno, io, json, os, pickle, random, resource, signal, subprocess, sys, time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from conftest import ROOT, papermill, rows
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from saaae.attention import ATTENTION
from saaae.data import DataError, Images, load_cache, load_images, photos64, read_tensors, read_weights, save_cache, save_tensors, stl10
from saaae.models import GATES, SAAAE
from saaae.reparameterization import KL_KINDS, SCOPES, to_importance
from saaae.training import CHECKPOINT, PREVIOUS, ConfigError, TrainingError, build_models, configure, load_run, train

TOY = dict(width=2, epochs=6, batch_size=8, image_size=16, train_images=16, latent=4, attention="patch", patches=2, patch_size=4, grid_epochs=(2, 6), device="cpu")
CFG = configure("quick", **TOY)
PROGRAM = f"""
import os, signal, sys, time
from pathlib import Path
from saaae.data import load_images
from saaae.evaluation import evaluate, plot_grid, save_figure
from saaae.training import build_models, configure, train
cfg = configure("quick", **{TOY!r})
images = load_images(cfg.dataset, "train", 16, 16)
def measure(model, epoch): return dict(mse=evaluate(model, images, cfg, ssim=False)["mse"])
def draw(models, epoch): save_figure(plot_grid(models, images, cfg, epoch), Path(sys.argv[1])/"recon"/f"epoch_{{epoch:04d}}.png", dpi=30)
def run(): train(build_models(cfg), images, cfg, sys.argv[1], measure, draw, checkpoint_seconds=0)
"""
LEFT = ("metrics.csv", "config.json", "vae.safetensors", "saaae.safetensors", "recon/epoch_0002.png", "recon/epoch_0006.png")


def program(folder, before="", after="", **how):
    return subprocess.run([sys.executable, "-c", PROGRAM + before + "\nrun()\n" + after, folder], capture_output=True, text=True, cwd=ROOT,
                          env=dict(os.environ, PYTHONPATH=str(ROOT)), **how)


@pytest.fixture(scope="session")
def images(): return photos64("train", 16, 16)


def quietly(images, folder, cfg=CFG, stop_after=None, evaluate=None):
    "Train in this process; returns what was said. With `stop_after`, stop once that epoch's checkpoint is written."
    class Stop(Exception): pass
    def stop(model, epoch):
        if stop_after and epoch > stop_after: raise Stop
        return {}
    with redirect_stdout(said := io.StringIO()):
        try: train(build_models(cfg), images, replace(cfg, eval_every=1), folder, evaluate or stop, checkpoint_seconds=0)
        except Stop: pass
    return said.getvalue()


def flip(path, at, bit=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def same(a, b):
    for name in LEFT: assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
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
    first = subprocess.Popen([sys.executable, "-c", PROGRAM + hold + "run()", tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    try:
        while "holding" not in (line := first.stdout.readline()): assert line
        before = (tmp_path / "metrics.csv").read_bytes()
        with pytest.raises(TrainingError) as refused: quietly(images, tmp_path)
        assert f"is in use by another run (process {first.pid} on" in sentence(refused)
        assert (tmp_path / "metrics.csv").read_bytes() == before
    finally: first.kill(), first.wait()
    assert "Going on" in quietly(images, tmp_path, replace(CFG, eval_every=CFG.eval_every))  # the kernel let go of it
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("state", ["finished", "unfinished", "only begun"])
def test_a_folder_of_another_config_is_refused(tmp_path, images, state):
    quietly(images, tmp_path, stop_after=None if state == "finished" else 2)
    if state != "unfinished": (tmp_path / CHECKPOINT).unlink()
    (tmp_path / PREVIOUS).unlink(missing_ok=True)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(TrainingError) as refused: quietly(images, tmp_path, replace(CFG, lr=1e-3, beta=2))
    said = sentence(refused)
    assert "beta = 1.0, not 2; lr = 0.002, not 0.001" in said and "Delete" in said and str(tmp_path) in said
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


# Damaged checkpoints


def other_version(path):
    tensors, about = read_tensors(path)
    save_tensors(path, tensors, about | dict(format=99))


def other_model(path):
    tensors, about = read_tensors(path)
    save_tensors(path, {k: v[:1] if v.dim() else v for k, v in tensors.items()}, about)


def other_names(path):
    tensors, about = read_tensors(path)
    save_tensors(path, tensors, about | dict(learners=dict(unet={})))


DAMAGE = dict(truncated=lambda p: p.write_bytes(p.read_bytes()[:-9]), empty=lambda p: p.write_bytes(b""), half=lambda p: p.write_bytes(p.read_bytes()[:p.stat().st_size // 2]),
              flipped_header=lambda p: flip(p, 30), flipped_number=lambda p: flip(p, -40), version=other_version, model=other_model, names=other_names,
              text=lambda p: p.write_bytes(b"hello"), zeros=lambda p: p.write_bytes(bytes(4096)))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_checkpoint_is_named_and_the_previous_is_used(tmp_path, images, damage):
    quietly(images, tmp_path / "whole")
    quietly(images, folder := tmp_path / "run", stop_after=3)
    DAMAGE[damage](folder / CHECKPOINT)
    said = quietly(images, folder)
    assert str(folder / CHECKPOINT) in said and f"The previous checkpoint is used: {folder / PREVIOUS}." in said and "after epoch 2" in said
    for name in ("metrics.csv", "vae.safetensors", "saaae.safetensors"): assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_two_bad_checkpoints_are_refused(tmp_path, images):
    quietly(images, tmp_path, stop_after=3)
    flip(tmp_path / CHECKPOINT, -40), (tmp_path / PREVIOUS).write_bytes(b"")
    metrics = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(TrainingError) as refused: quietly(images, tmp_path)
    said = sentence(refused)
    assert f"{tmp_path / CHECKPOINT} is damaged: its content is not what was written." in said and f"{tmp_path / PREVIOUS} is empty." in said and "Delete" in said
    assert (tmp_path / "metrics.csv").read_bytes() == metrics


def test_rows_that_were_changed_are_refused(tmp_path, images):
    quietly(images, tmp_path, stop_after=3)
    good = (tmp_path / "metrics.csv").read_text()
    for bad in (good.replace("vae,1,", "vae,1,9", 1), "".join(good.splitlines(keepends=True)[:2]), "", "nonsense\n"):
        (tmp_path / "metrics.csv").write_text(bad)
        with pytest.raises(TrainingError) as refused: quietly(images, tmp_path)
        assert "metrics.csv is damaged" in sentence(refused)
    (tmp_path / "metrics.csv").write_text(good)
    assert "Going on" in quietly(images, tmp_path)


# Hostile weights


class Bomb:
    def __reduce__(self): return os.system, ("touch executed",)


def header(**entries): return json.dumps(entries).encode()
def tensors_file(head, body=b"", length=None): return (len(head) if length is None else length).to_bytes(8, "little") + head + body


HOSTILE = dict(
    pickle=lambda: pickle.dumps(Bomb()),
    torch_pickle=lambda: (torch.save(dict(a=Bomb()), f := io.BytesIO()), f.getvalue())[1],
    header_of_exabytes=lambda: tensors_file(b"{}", length=2**63),
    header_past_the_end=lambda: tensors_file(b"{}", length=10**8),
    tensor_of_terabytes=lambda: tensors_file(header(a=dict(dtype="F32", shape=[2**40], data_offsets=[0, 2**42])), bytes(64)),
    shape_that_overflows=lambda: tensors_file(header(a=dict(dtype="F32", shape=[2**62, 4], data_offsets=[0, 0]))),
    negative_shape=lambda: tensors_file(header(a=dict(dtype="F32", shape=[-1], data_offsets=[0, 4])), bytes(4)),
    overlapping=lambda: tensors_file(header(a=dict(dtype="F32", shape=[2], data_offsets=[0, 8]), b=dict(dtype="F32", shape=[2], data_offsets=[4, 12])), bytes(12)),
    nested=lambda: tensors_file(b'{"a":' * 100_000),
    path_up=lambda: safetensors.torch.save({"../../x": torch.zeros(1)}),
    path_root=lambda: safetensors.torch.save({"/etc/passwd": torch.zeros(1)}),
    path_windows=lambda: safetensors.torch.save({"a\\..\\x": torch.zeros(1)}),
    nul=lambda: safetensors.torch.save({"a\0b": torch.zeros(1)}),
    nan=lambda: safetensors.torch.save({"a": torch.tensor([0, float("nan")])}),
    infinite=lambda: safetensors.torch.save({"a": torch.tensor([0, float("inf")])}),
    no_file_format=lambda: b"GIF89a" + bytes(100),
)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weights_are_refused_unopened(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (path := tmp_path / "saaae.safetensors").write_bytes(HOSTILE[kind]())
    before = psutil.Process().memory_info().rss
    with pytest.raises(DataError) as refused: read_weights(path)
    assert str(path) in sentence(refused) and ("pickle" in str(refused.value)) == ("pickle" in kind)
    assert psutil.Process().memory_info().rss - before < 64e6 and not (tmp_path / "executed").exists()
    model = SAAAE(16, 2, 4, "patch")
    model.save_pretrained(tmp_path / "hub")
    (tmp_path / "hub" / "model.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(DataError): SAAAE.from_pretrained(tmp_path / "hub")


def test_a_run_with_bad_files_is_refused(tmp_path, images):
    quietly(images, tmp_path)
    saved = {p: p.read_bytes() for p in tmp_path.glob("*.*") if p.is_file()}
    def refused(name, content, says):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TrainingError) as error: load_run(tmp_path, "cpu")
        assert str(tmp_path / name) in sentence(error) and says in str(error.value)
        (tmp_path / name).write_bytes(saved[tmp_path / name])
    weights, config = saved[tmp_path / "saaae.safetensors"], saved[tmp_path / "config.json"]
    refused("saaae.safetensors", weights[:-9], "cannot be read")
    refused("saaae.safetensors", b"", "is empty")
    refused("saaae.safetensors", weights[:-40] + bytes([weights[-40] ^ 1]) + weights[-39:], "is damaged")
    refused("saaae.safetensors", saved[tmp_path / "vae.safetensors"], "another model")
    refused("saaae.safetensors", pickle.dumps(Bomb()), "pickle")
    for content in (b"", config[:40], b"[]", b'{"config": 3}', b"\xff" + config): refused("config.json", content, "config.json")
    refused("config.json", config.replace(b'"beta"', b'"bet\xc3\xa4"'), "not of this version")
    refused("config.json", config.replace(b'"width": 2', b'"width": "wide"'), "not of this version")
    assert set(load_run(tmp_path, "cpu")[1]) == {"vae", "saaae"}
