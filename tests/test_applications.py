"What is committed of the applications: each table follows from its metrics, and every run from a clean checkout."

import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_conditional import check_best

from saaae.apps.restoration import OURS

APPLICATIONS = ROOT / "results" / "applications"


@pytest.mark.parametrize("name", ["inpainting", "denoising"])
def test_committed_table_follows_from_the_metrics(name):
    task = dict(inpainting="hole", denoising="noise")[name]
    value = pd.read_csv(APPLICATIONS / f"{name}.csv").set_index(["method", "setting", "measure"]).value
    head, _, *lines = (APPLICATIONS / f"{name}.md").read_text().splitlines()
    assert head.startswith(f"| {task} |") and len(lines) >= 5
    for line in lines:
        setting, best, ours, difference, _ = (cell.strip() for cell in line.split("|")[1:-1])
        tools = [m for m in value.index.unique("method") if m not in OURS and (m, setting, "psnr_db") in value.index]
        top = max(tools, key=lambda m: value[m, setting, "psnr_db"])
        assert best.startswith(f"{top}: {value[top, setting, 'psnr_db']:.2f} dB")
        assert ours.startswith(f"{value['saaae', setting, 'psnr_db']:.2f} dB")


def test_compression_table_follows_from_the_files():
    "BD-rate by an independent integration: the mean difference of log rates over the PSNR that both reach."
    from scipy.interpolate import PchipInterpolator

    table = pd.read_csv(APPLICATIONS / "compression.csv")
    said = (APPLICATIONS / "compression.md").read_text()
    for name, of in table.groupby("set"):
        found = []
        for _, rows in of.groupby("picture"):
            curves = []
            for method in ("JPEG", "SAAAE"):
                own = rows[rows.method == method].sort_values("bpp")
                own = own[own.psnr_db > own.psnr_db.cummax().shift(fill_value=-99)]
                own = own[own.bpp.between(0.03, 1.4, inclusive="neither")]
                curves.append(PchipInterpolator(own.psnr_db, np.log(own.bpp), extrapolate=False))
            low, high = max(c.x[0] for c in curves), min(c.x[-1] for c in curves)
            at = np.linspace(low, high, 400)
            if high - low > 1:
                found.append(100 * np.expm1((curves[1](at) - curves[0](at)).mean()))
        line = next(l for l in said.splitlines() if l.startswith(f"| {name}: 40 %"))
        assert float(line.split("|")[3].split("%")[0]) == pytest.approx(np.mean(found), abs=1.5)
        assert ("| yes |" in line) == (np.mean(found) <= -40)


def test_committed_best_baselines_follow_from_the_metrics():
    check_best(APPLICATIONS)


def test_runs_are_of_a_clean_checkout():
    configs = sorted(APPLICATIONS.rglob("config.json"))
    assert len(configs) == 2
    for path in configs:
        assert json.loads(path.read_text())["git"]["modified"] is False
