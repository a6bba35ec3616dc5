"What is committed of the applications: each table follows from its metrics, and every run from a clean checkout."

import json

import pandas as pd
import pytest
from conftest import ROOT
from test_conditional import check_best

from saaae.apps.restoration import readme_table

APPLICATIONS = ROOT / "results" / "applications"


@pytest.mark.parametrize("name", ["inpainting", "denoising"])
def test_committed_table_follows_from_the_metrics(name):
    task = dict(inpainting="hole", denoising="noise")[name]
    assert readme_table(pd.read_csv(APPLICATIONS / f"{name}.csv"), task) == (APPLICATIONS / f"{name}.md").read_text()


def test_committed_best_baselines_follow_from_the_metrics():
    check_best(APPLICATIONS)


def test_compression_table_follows_from_the_metrics():
    value = pd.read_csv(APPLICATIONS / "compression.csv").set_index(["method", "setting", "measure"]).value
    for line in (APPLICATIONS / "compression.md").read_text().splitlines()[2:]:
        what, best, vae, saaae = (cell.strip() for cell in line.split("|")[1:-1])
        if not what.startswith("PSNR"):
            continue
        setting = f"bytes {what.split()[2]}" + ", without headers" * ("not counted" in what)
        for method, cell in dict(vae=vae, saaae=saaae).items():
            found = value.get((method, setting, "psnr_db"))
            assert cell == ("no file that small" if found is None else f"{found:.2f}")
        standards = {
            m.upper(): value[m, setting, "psnr_db"] for m in ("jpeg", "webp") if (m, setting, "psnr_db") in value.index
        }
        assert best == (
            f"{(m := max(standards, key=standards.get))}: {standards[m]:.2f}" if standards else "no file that small"
        )


def test_runs_are_of_a_clean_checkout():
    configs = sorted(APPLICATIONS.rglob("config.json"))
    assert len(configs) == 5
    for path in configs:
        assert json.loads(path.read_text())["git"]["modified"] is False
