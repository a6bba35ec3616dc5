"The models that ship: their files fit each other, and the model card's figures are what the weights give."

import csv, hashlib, json, re, subprocess
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import papermill
from saaae.sources.load import load_images
from saaae.evaluation import evaluate
from saaae.runs.report import to_markdown
from saaae.lab.controls import configure
from saaae.models import SAAAE, VAE

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "saaae" / "pretrained" / "photos64"
RUN = json.loads((FOLDER / "run.json").read_text())


@pytest.mark.parametrize("name", ["vae", "saaae"])
def test_weights_are_tracked_small_and_those_of_the_run(name):
    path = FOLDER / name / "model.safetensors"
    assert subprocess.run(["git", "-C", ROOT, "check-ignore", "-q", path]).returncode == 1
    assert path.stat().st_size <= 4e6
    assert hashlib.sha256(path.read_bytes()).hexdigest() == RUN["weights"][name]
    assert {v.dtype for v in safetensors.torch.load_file(path).values()} == {torch.float32}


def test_the_run_was_from_a_clean_commit():
    assert re.fullmatch("[0-9a-f]{40}", RUN["git"]["commit"]) and RUN["git"]["modified"] is False


def test_card_shows_the_tables():
    card, summary = (
        (FOLDER / "README.md").read_text(),
        pd.read_csv(FOLDER / "summary.csv").astype(dict(epochs_to_vae_final_mse="Int64")),
    )
    assert to_markdown(summary) in card and RUN["git"]["commit"] in card
    last = pd.read_csv(FOLDER / "metrics.csv").groupby("model").mse.last()
    for row in summary.itertuples():
        assert row.mse == pytest.approx(last[row.model], rel=1e-6)


def test_card_counts_the_licences():
    photographs = list(csv.DictReader(open(ROOT / "data" / "photos64" / "photographs.csv")))
    found = {
        licence: int(n)
        for n, licence in re.findall(r"(\d+) (public-domain|CC[\w.-]+\d)", (FOLDER / "README.md").read_text())
    }
    trained = [p["licence"] for p in photographs if p["split"] == "train"]
    assert found == {licence: trained.count(licence) for licence in set(trained)}


@pytest.mark.parametrize("kind", [VAE, SAAAE])
def test_figures_are_what_the_weights_give(kind, tmp_path, monkeypatch):
    (tmp_path / "photos64").mkdir()  # does not shadow the name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cfg = configure(**RUN["config"] | dict(device="cpu"))
    figures = evaluate(
        kind.from_pretrained("photos64"), load_images("photos64", "test", cfg.image_size, cfg.test_images), cfg
    )
    row = pd.read_csv(FOLDER / "summary.csv").set_index("model").loc[kind.__name__.lower()]
    for name in ("mse", "psnr_db", "ssim", "rate_bits", "gate_mean"):
        assert figures[name] == pytest.approx(row[name], rel=1e-4), name


def test_notebook_makes_them_elsewhere_and_the_same_again(tmp_path):
    toy = dict(epochs=1, train_images=64, test_images=16, width=2, latent=4)
    before = (FOLDER / "run.json").read_bytes()
    for name in ("one", "two"):
        run = papermill("shipped.ipynb", tmp_path / name, **toy)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    one, two = (
        json.loads((tmp_path / name / "photos64" / "run.json").read_text())["weights"] for name in ("one", "two")
    )
    assert one == two and (FOLDER / "run.json").read_bytes() == before
    assert SAAAE.from_pretrained(tmp_path / "one" / "photos64" / "saaae").latent_shape == (4,)


def test_notebook_refuses_a_model_that_is_too_large(tmp_path):
    run = papermill("shipped.ipynb", tmp_path, epochs=1, train_images=64, test_images=16, width=16, latent=128)
    assert run.returncode != 0 and "at most a million parameters" in run.stdout + run.stderr
