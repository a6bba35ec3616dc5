"Precision on demand: its notebook at toy size, on runs whose answer is known, and what is committed."

import csv, json, math, re, shutil

import pytest
from conftest import ROOT, papermill, rows
from saaae.lab.sweep import complete_runs, run_config
from saaae.lab.controls import configure
from saaae.lab.variants import PRECISION, TRIED, variant_config

RESULTS = ROOT / "results" / "precision"
TOY = dict(
    variants=["vae", "tempered", "conditioned", "spatial_regions", "spatial_attention_edges"],
    seeds=1,
    epochs=1,
    width=2,
    train_images=20,
    test_images=20,
    batch_size=20,
    device="cpu",
)


@pytest.mark.slow
def test_toy(tmp_path):
    run = papermill("precision.ipynb", tmp_path, **TOY)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "5 of 5 runs are complete" in run.stdout
    seen = {(r["variant"], r["mode"]) for r in rows(tmp_path / "rates.csv")}
    assert {("vae", "own"), ("tempered", "t, mean grows"), ("conditioned", "t"), ("spatial_regions", "t")} <= seen
    for r in rows(tmp_path / "rates.csv"):
        if r["mode"] == "budget":
            assert float(r["rate_bits"]) == pytest.approx(float(r["value"]), rel=1e-3)
    assert {r["variant"] for r in rows(tmp_path / "regions.csv")} == {
        "tempered",
        "spatial_regions",
    }  # those that show what a region gains
    assert {"importance", "shuffled", "kl", "uniform", "oracle"} == {
        r["map"] for r in rows(tmp_path / "maps.csv") if r["variant"] == "spatial_attention_edges"
    }
    assert {p.name for p in tmp_path.iterdir()} >= {"rates.png", "regions.png", "goals.md", "tries.md"}


def test_wrong_parameters_are_refused_by_name(cells, tmp_path):
    run = cells("precision.ipynb", tmp_path, **TOY | dict(variants=["gan"]))
    assert run.returncode != 0 and "'gan' is none of" in run.stderr and not (tmp_path / "runs").exists()


def made_up(out):
    "Finished runs with errors that follow 100 - 8 ln(rate): dedicated ones, one model 2 % above, one 3 %."

    def write(variant, seed, points):
        folder = out / "runs" / variant / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(dict(config=dict(preset="evidence32"))))
        with open(folder / "evaluation.csv", "w", newline="") as f:
            table = csv.writer(f)
            table.writerow(("mode", "value", "rate_bits", "mse", "psnr_db", "mse_edges"))
            for mode, value, rate, factor in points:
                error = factor * (100 + seed - 8 * math.log(rate))
                table.writerow((mode, value, rate, error, 0, error))

    levels = [2 ** (k / 2) for k in range(-12, 13)]
    for seed in (0, 1):
        for i, variant in enumerate(("vae_beta_4", "vae", "vae_beta_0.25", "vae_beta_0.06")):
            write(variant, seed, [("own", 1, 20 * 2.4**i, 1)])
        for variant, factor in (("tempered", 1.02), ("conditioned", 1.03)):
            write(variant, seed, [("t", t, 80 * t**0.6, factor) for t in levels])


def test_known_answer(tmp_path):
    made_up(tmp_path)
    run = papermill(
        "precision.ipynb",
        tmp_path,
        seeds=2,
        variants=["vae_beta_4", "vae", "vae_beta_0.25", "vae_beta_0.06", "tempered", "conditioned"],
    )
    assert run.returncode == 0, run.stderr[-3000:]
    goals = (tmp_path / "goals.md").read_text()
    means = {
        line.split("|")[1].strip(): float(re.search(r": ([+-][\d.]+) \[", line)[1]) for line in goals.splitlines()[2:]
    }
    within, below, better = means.values()
    assert (
        within == pytest.approx(2, abs=0.02)
        and below == pytest.approx(2, abs=0.02)
        and better == pytest.approx(-1, abs=0.02)
    )
    assert goals.count("**no**") == 3  # two seeds decide nothing in favour


def test_committed_tables_say_what_made_them():
    """Every run was made from a clean checkout with the config that its variant has now: six seeds of each variant,
    three of those that are only tried."""
    lines, expected = complete_runs(RESULTS), {(v, s) for v in PRECISION for s in range(3 if v in TRIED else 6)}
    assert set(lines) == expected
    for name in ("rates", "curves", "speed"):
        assert {(r["variant"], int(r["seed"])) for r in rows(RESULTS / f"{name}.csv")} == expected
    for (variant, seed), line in lines.items():
        assert line["git"]["modified"] is False and len(line["git"]["commit"]) == 40
        assert configure(**run_config(line)) == variant_config(variant, seed, RESULTS, "evidence32", device="cpu")


def test_committed_goals_follow_from_the_committed_tables(tmp_path):
    for path in (RESULTS / "runs.jsonl", *RESULTS.glob("*.csv")):
        shutil.copy(path, tmp_path)
    run = papermill("precision.ipynb", tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    for path in (RESULTS / "runs.jsonl", RESULTS / "goals.md", RESULTS / "tries.md", *RESULTS.glob("*.csv")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
