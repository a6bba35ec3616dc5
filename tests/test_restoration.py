"""Inpainting and denoising as a user runs them, at toy size; figures against plain numpy and OpenCV; wrong input is
refused by name."""

import csv, json

import cv2
import numpy as np
import pytest
from conftest import papermill, rows
from PIL import Image

from saaae.sources.photos64 import photos64
from saaae.lab.masks import evaluation_masks
from saaae.apps.restoration import INPAINTERS, inpaint

TOY = dict(epochs=1, width=2, train_images=20, test_images=8, batch_size=10, tune=1, device="cpu")


def table(path):
    assert next(csv.reader(open(path))) == ["method", "setting", "measure", "value", "n"]
    return {(r["method"], r["setting"], r["measure"]): float(r["value"]) for r in rows(path)}


def psnr(a, b):
    return -10 * np.log10(max(np.mean((a - b) ** 2), 1 / 12 / 255**2))


def test_inpainting(tmp_path):
    wedge = np.zeros((100, 300), np.uint8)
    wedge[30:60, 50:250] = 255
    Image.fromarray(wedge).save(tmp_path / "wedge.png")
    given = TOY | dict(few=8, mask_file=str(tmp_path / "wedge.png"))
    run = papermill("inpainting.ipynb", tmp_path / "a", **given)
    assert run.returncode == 0, run.stderr[-3000:]
    found = table(tmp_path / "a" / "inpainting.csv")
    settings, methods = ("patches", "block", "half", "strokes", "file"), (*INPAINTERS, "vae", "saaae")
    assert set(found) == {
        (m, s, k)
        for m in methods
        for s in settings
        for k in ("psnr_db", "ssim", *(("psnr_db_sample", "ssim_sample", "rate_bits") if m in ("vae", "saaae") else ()))
    }
    images = photos64("test", 8).pixels.permute(0, 2, 3, 1).numpy()
    hole = np.zeros((64, 64), bool)
    hole[[r for r in range(64) if 30 <= (r + 0.5) * 100 / 64 < 60]] = [
        50 <= (c + 0.5) * 300 / 64 < 250 for c in range(64)
    ]
    radius = json.loads((tmp_path / "a" / "inpainting" / "options.json").read_text())["options"]["file, telea"][
        "radius"
    ]
    telea = [
        cv2.inpaint(np.where(hole[..., None], 0, p).astype(np.uint8), hole.astype(np.uint8), radius, cv2.INPAINT_TELEA)
        / 255
        for p in images
    ]
    mean = [np.broadcast_to(p[~hole].mean(0) / 255, p.shape) for p in images]
    for name, filled in dict(telea=telea, mean_colour=mean).items():
        assert found[name, "file", "psnr_db"] == pytest.approx(
            np.mean([psnr(f[hole], p[hole] / 255) for f, p in zip(filled, images)]), abs=1e-3
        )
    assert (tmp_path / "a" / "inpainting.png").stat().st_size > 10_000
    line = next(l for l in (tmp_path / "a" / "inpainting.md").read_text().splitlines() if l.startswith("| block"))
    assert f"{found['vae', 'block', 'psnr_db']:.2f} dB" in line and f"{found['saaae', 'block', 'ssim']:.3f}" in line
    assert f"{max(found[m, 'block', 'psnr_db'] for m in INPAINTERS):.2f} dB" in line

    weights = (tmp_path / "a" / "inpainting" / "vae.safetensors").stat().st_mtime_ns
    again = papermill("inpainting.ipynb", tmp_path / "a", **given)  # the trained models are used again
    assert again.returncode == 0 and (tmp_path / "a" / "inpainting" / "vae.safetensors").stat().st_mtime_ns == weights
    assert table(tmp_path / "a" / "inpainting.csv") == found


def test_known_pixels_are_kept_to_the_bit():
    from saaae.data import normalize, to_unit

    pixels, mask = photos64("test", 4).pixels, evaluation_masks("strokes", 4, 64)
    x = to_unit(normalize(pixels))
    for name in INPAINTERS:
        back = (255 * inpaint(name, x, mask)).round().byte()
        assert (back == pixels)[(~mask).expand_as(pixels)].all() and (back != pixels)[mask.expand_as(pixels)].any()


def test_denoising(tmp_path):
    run = papermill("denoising.ipynb", tmp_path, **TOY | dict(few=2))
    assert run.returncode == 0, run.stderr[-3000:]
    found = table(tmp_path / "denoising.csv")
    gaussian = {
        level: f"Gaussian {level:g}" + (" (not trained on)" if level > 0.5 else "")
        for level in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
    }
    settings = (*gaussian.values(), "salt and pepper 0.1 (not trained on)")
    assert {(m, s) for m, s, _ in found} == {
        (m, s) for m in ("noisy", "nlm", "tv", "wavelet", "bm3d", "median", "vae", "saaae") for s in settings
    }
    for level in (0.05, 0.1, 0.2):
        assert (
            -0.2 < found["noisy", gaussian[level], "psnr_db"] + 20 * np.log10(level) < 3
        )  # clipping takes some of it away
    for level in (0.1, 0.2, 0.3, 0.4):
        assert found["bm3d", gaussian[level], "psnr_db"] > found["noisy", gaussian[level], "psnr_db"] + 3
    assert found["median", settings[-1], "psnr_db"] > found["noisy", settings[-1], "psnr_db"] + 5
    config = json.loads((tmp_path / "denoising" / "config.json").read_text())["config"]
    assert (config["noise_std"], config["noise_varies"], config["patches"]) == (0.8, True, 0)
    assert (tmp_path / "denoising.png").stat().st_size > 10_000 and "| Gaussian 0.2 | " in (
        tmp_path / "denoising.md"
    ).read_text()


def test_images_of_ones_own(tmp_path):
    folder, rng = tmp_path / "mine", np.random.RandomState(0)
    folder.mkdir()
    for i in range(11):
        Image.fromarray(rng.randint(0, 255, (70 + i, 90, 3)).astype(np.uint8)).save(folder / f"{i:02d}.png")
    Image.fromarray(rng.randint(0, 65535, (80, 70)).astype(np.uint16)).save(folder / "11.png")
    Image.fromarray(rng.randint(0, 255, (5, 4, 4)).astype(np.uint8)).save(folder / "12.png")
    Image.fromarray(rng.randint(0, 255, (90, 80)).astype(np.uint8)).save(folder / "13.png")
    for name in ("14", "17"):
        (folder / f"{name}.png").write_bytes(b"not an image")
    for name in ("15", "16"):
        Image.fromarray(rng.randint(0, 255, (64, 64)).astype(np.uint8)).save(folder / f"{name}.png")
    run = papermill(
        "inpainting.ipynb",
        tmp_path / "run",
        **{k: v for k, v in TOY.items() if "images" not in k} | dict(dataset=str(folder), few=200),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "17.png cannot be read as an image" in (tmp_path / "run" / "inpainting.ipynb").read_text()
    assert {r["n"] for r in rows(tmp_path / "run" / "inpainting.csv")} == {"2"}  # 05 and 11; 17 is none


@pytest.mark.parametrize(
    "notebook, wrong, says",
    [
        ("inpainting.ipynb", dict(mask_file="nowhere.png"), "nowhere.png cannot be read as an image"),
        ("inpainting.ipynb", dict(mask_file=3), "mask_file must be text, not 3"),
        ("inpainting.ipynb", dict(maskfile="a.png"), "maskfile is not a parameter"),
        ("denoising.ipynb", dict(few=0), "few must be at least 1, not 0"),
        ("denoising.ipynb", dict(noise_std=0), "noise_std must be above 0 here"),
        ("denoising.ipynb", dict(classes=3), "classes must be 0 here"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_parameters_are_refused_by_name(tmp_path, notebook, wrong, says):
    run = papermill(notebook, tmp_path, **TOY | wrong)
    assert run.returncode != 0 and says in run.stderr
    assert not list(tmp_path.glob("*/metrics.csv"))
