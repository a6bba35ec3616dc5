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
from saaae.apps.restoration import DENOISERS, INPAINTERS, inpaint, spread

TOY = dict(few=8, larger=0, tune=1)


def table(path):
    assert next(csv.reader(open(path))) == ["method", "setting", "measure", "value", "n"]
    return {(r["method"], r["setting"], r["measure"]): float(r["value"]) for r in rows(path)}


def psnr(a, b):
    return -10 * np.log10(max(np.mean((a - b) ** 2), 1 / 12 / 255**2))


def test_inpainting(tmp_path):
    wedge = np.zeros((100, 300), np.uint8)
    wedge[30:60, 50:250] = 255
    Image.fromarray(wedge).save(tmp_path / "wedge.png")
    run = papermill("inpainting.ipynb", tmp_path / "a", **TOY, mask_file=str(tmp_path / "wedge.png"))
    assert run.returncode == 0, run.stderr[-3000:]
    found = table(tmp_path / "a" / "inpainting.csv")
    kinds = ("patches", "block", "half", "strokes", "file")
    methods = (*INPAINTERS, "linear", "start", "network", "saaae")
    expected = {(m, f"{s}, 64x64", k) for m in methods for s in kinds for k in ("psnr_db", "ssim")}
    assert set(found) == expected | {("saaae", f"{s}, 64x64", "psnr_db_sample") for s in kinds}
    images = spread(photos64("test"), 8).pixels.permute(0, 2, 3, 1).numpy()
    hole = np.zeros((64, 64), bool)
    hole[[r for r in range(64) if 30 <= (r + 0.5) * 100 / 64 < 60]] = [
        50 <= (c + 0.5) * 300 / 64 < 250 for c in range(64)
    ]
    radius = json.loads((tmp_path / "a" / "inpainting.json").read_text())["telea"]["file"]["radius"]
    telea = [
        cv2.inpaint(np.where(hole[..., None], 0, p).astype(np.uint8), hole.astype(np.uint8), radius, cv2.INPAINT_TELEA)
        / 255
        for p in images
    ]
    mean = [np.broadcast_to(p[~hole].mean(0) / 255, p.shape) for p in images]
    for name, filled in dict(telea=telea, mean_colour=mean).items():
        assert found[name, "file, 64x64", "psnr_db"] == pytest.approx(
            np.mean([psnr(f[hole], p[hole] / 255) for f, p in zip(filled, images)]), abs=1e-3
        )
    assert (tmp_path / "a" / "inpainting.png").stat().st_size > 10_000
    line = next(l for l in (tmp_path / "a" / "inpainting.md").read_text().splitlines() if l.startswith("| block"))
    assert f"{found['saaae', 'block, 64x64', 'psnr_db']:.2f} dB" in line
    assert f"{max(found[m, 'block, 64x64', 'psnr_db'] for m in (*INPAINTERS, 'linear')):.2f} dB" in line


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
    gaussian = {level: f"Gaussian {level:g}, 64x64" for level in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6)}
    settings = (*gaussian.values(), "salt and pepper 0.1, 64x64")
    assert {(m, s) for m, s, _ in found} == {
        (m, s) for m in ("noisy", "network", *DENOISERS, "linear", "saaae") for s in settings
    }
    for level in (0.05, 0.1, 0.2):  # clipping takes some of it away
        assert -0.2 < found["noisy", gaussian[level], "psnr_db"] + 20 * np.log10(level) < 3
    for level in (0.1, 0.2, 0.3, 0.4):
        for method in ("bm3d", "saaae"):
            assert found[method, gaussian[level], "psnr_db"] > found["noisy", gaussian[level], "psnr_db"] + 3
    assert found["median", settings[-1], "psnr_db"] > found["noisy", settings[-1], "psnr_db"] + 5
    assert found["saaae", settings[-1], "psnr_db"] > found["median", settings[-1], "psnr_db"] + 2
    assert (tmp_path / "denoising.png").stat().st_size > 10_000
    assert "| Gaussian 0.2, 64x64 | " in (tmp_path / "denoising.md").read_text()


@pytest.mark.parametrize(
    "notebook, wrong, says",
    [
        ("inpainting.ipynb", dict(mask_file="nowhere.png"), "nowhere.png cannot be read as an image"),
        ("inpainting.ipynb", dict(mask_file=3), "mask_file must be text, not 3"),
        ("inpainting.ipynb", dict(maskfile="a.png"), "maskfile is not a parameter"),
        ("denoising.ipynb", dict(few=0), "few must be at least 1, not 0"),
        ("denoising.ipynb", dict(dataset="nowhere"), "nowhere"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_parameters_are_refused_by_name(cells, tmp_path, notebook, wrong, says):
    run = cells(notebook, tmp_path, **TOY | wrong)
    assert run.returncode != 0 and says in run.stderr
    assert not list(tmp_path.glob("*.csv"))
