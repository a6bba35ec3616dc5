"""Conditional generation: its notebook at toy size, on photographs and on a folder whose classes are plain to see, and
what it refuses."""

import math

import numpy as np
import pytest
from conftest import papermill, rows
from PIL import Image

NOTEBOOK = "generation.ipynb"
TOY = dict(epochs=1, width=2, train_images=21, test_images=14, draws=2, batch_size=16, device="cpu")


def figures(folder):
    "The table as a dictionary."
    table = rows(folder / "conditional.csv")
    assert list(table[0]) == ["method", "setting", "measure", "value", "n"]
    found = {(r["method"], r["setting"], r["measure"]): float(r["value"]) for r in table}
    assert len(found) == len(table)
    return found


def check_best(folder):
    "The best baseline of each task in conditional.md, found again from conditional.csv."
    value = figures(folder)
    unlabelled = ("vae_unlabelled", "saaae_unlabelled")
    fitted = {m: "samples, class gaussians" for m in unlabelled} | dict(pixel_gaussians="samples")
    expected = {
        "Samples from N(0, I): distance": (min, "distance", fitted, "samples, prior"),
        "Samples from a Gaussian a class: distance": (min, "distance", fitted, "samples, class gaussians"),
        "Samples from N(0, I): class recognised": (max, "accuracy", fitted, "samples, prior"),
        "Samples from a Gaussian a class: class recognised": (max, "accuracy", fitted, "samples, class gaussians"),
        "Label swapped": (max, "accuracy", {m: "swapped label" for m in (*unlabelled, "pixel_shift")}, "swapped label"),
        "Reconstruction": (
            max,
            "psnr_db",
            {m: "no label" for m in unlabelled} | dict(class_mean="true label", nearest_training="true label"),
            "true label",
        ),
        "Half-way": (
            min,
            "distance",
            {m: "interpolation, middle" for m in (*unlabelled, "pixel_fade")},
            "interpolation, middle",
        ),
    }
    lines = (folder / "conditional.md").read_text().splitlines()
    for task, (choose, measure, baselines, setting) in expected.items():
        line = next(l for l in lines if l.startswith(f"| {task}"))
        cells = [c.strip() for c in line.split("|")[2:5]]
        best = choose(value[m, s, measure] for m, s in baselines.items())
        number = lambda text: float(text.split()[0].rstrip("%")) / (100 if "%" in text else 1)
        for cell, figure in zip(cells, (best, value["vae", setting, measure], value["saaae", setting, measure])):
            assert number(cell) == pytest.approx(figure, abs=0.006 if measure == "psnr_db" else 0.0006), task
        assert value[name := cells[0].split("`")[1], baselines[name], measure] == best, task


@pytest.mark.slow
def test_toy(tmp_path):
    run = papermill(NOTEBOOK, tmp_path, **TOY)
    assert run.returncode == 0, run.stderr[-3000:]
    value, names = figures(tmp_path), {"animal", "energy", "fish", "household", "monument", "scenery", "tool"}
    for method in ("vae", "saaae"):
        for setting in ("true label", "wrong label"):
            assert (method, setting, "rate_bits") in value and (method, setting, "kl_full_nats") in value
        for prior in ("prior", "gaussian", "class gaussians"):
            assert (method, f"samples, {prior}", "distance") in value
    assert {s.split(", ")[-1] for m, s, k in value if m == "training_photographs" and k == "accuracy"} == names | {
        "samples"
    }
    assert {r["n"] for r in rows(tmp_path / "conditional.csv") if r["setting"].split(", ")[-1] not in names} == {"14"}
    assert {r["n"] for r in rows(tmp_path / "conditional.csv") if r["setting"].split(", ")[-1] in names} == {"2"}
    for prior in ("prior", "class gaussians"):  # the mean over classes of what each class has
        each = [value["vae", f"samples, {prior}, {name}", "accuracy"] for name in names]
        assert value["vae", f"samples, {prior}", "accuracy"] == pytest.approx(sum(each) / 7)
    assert value["class_mean", "samples", "label_share"] == pytest.approx(1)
    assert (
        value["class_mean", "samples", "accuracy_low"] == value["class_mean", "samples", "accuracy_high"]
    )  # every draw the same
    check_best(tmp_path)
    assert (tmp_path / "conditional.png").stat().st_size > 20_000
    said = (tmp_path / NOTEBOOK).read_text()
    assert "Against the best baseline" in said and "not told apart" in said

    trained = tmp_path / "conditional" / "labelled" / "vae.safetensors"
    weights, when, table = trained.read_bytes(), trained.stat().st_mtime_ns, (tmp_path / "conditional.csv").read_bytes()
    assert papermill(NOTEBOOK, tmp_path, **TOY).returncode == 0
    assert (
        trained.stat().st_mtime_ns == when and (tmp_path / "conditional.csv").read_bytes() == table
    )  # used again, the same numbers
    trained.unlink()
    assert papermill(NOTEBOOK, tmp_path, **TOY).returncode == 0
    assert (
        trained.read_bytes() == weights and (tmp_path / "conditional.csv").read_bytes() == table
    )  # made again, the same numbers


def photographs(folder, classes, n=12):
    "Class folders of noisy pictures, each class as bright as is said, of several sizes and modes."
    rng, modes = np.random.RandomState(0), [("RGB", (90, 70)), ("L", (64, 64)), ("RGBA", (33, 50))]
    for name, level in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            mode, (h, w) = modes[i % 3]
            grey = (level + 12 * rng.randn(h, w)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).convert(mode).save(folder / name / f"{i:02d}.png")


def test_folder_of_ones_own(tmp_path):
    photographs(tmp_path / "mine", dict(dark=50, bright=200))
    (tmp_path / "mine" / "dark" / "12.png").write_bytes(b"not an image")
    run = papermill(
        NOTEBOOK, tmp_path / "run", dataset=str(tmp_path / "mine"), **TOY | dict(train_images=None, test_images=None)
    )
    assert run.returncode == 0, run.stderr[-3000:]
    value = figures(tmp_path / "run")
    assert {int(r["n"]) for r in rows(tmp_path / "run" / "conditional.csv")} == {
        4,
        2,
    }  # every sixth of each class is held out
    assert value["photographs", "held out", "accuracy"] == 1 and value["photographs", "held out", "label_share"] > 0.9
    assert (
        value["training_photographs", "samples", "accuracy"] == 1
        and value["pixel_gaussians", "samples", "accuracy"] == 1
    )
    assert value["photographs", "swapped label", "accuracy"] == 0 and value["photographs", "swapped label", "old"] == 1
    assert (
        value["pixel_shift", "swapped label", "accuracy"] == 1
    )  # a shift by the classes' means turns dark into bright
    assert value["class_mean", "true label", "psnr_db"] > 20 * math.log10(
        255 / 12
    )  # no worse than the noise: of the right class
    assert "12.png cannot be read as an image" in (tmp_path / "run" / NOTEBOOK).read_text()
    check_best(tmp_path / "run")


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(epoch=3), "epoch is not a parameter; did you mean epochs?"),
        (dict(draws=1), "draws must be a whole number from 2 to 100, not 1."),
        (dict(classes=3), "classes is not a parameter here"),
        (dict(image_size=48), "image_size must be a multiple of 32 here, not 48"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_parameters_are_refused_by_name(cells, tmp_path, wrong, says):
    run = cells(NOTEBOOK, tmp_path / "run", **TOY | wrong)
    assert run.returncode != 0 and says in run.stderr
    assert not (tmp_path / "run" / "conditional").exists()


def test_a_single_class_is_refused(cells, tmp_path):
    photographs(tmp_path / "mine", dict(dark=50))
    run = cells(
        NOTEBOOK, tmp_path / "run", dataset=str(tmp_path / "mine"), **TOY | dict(train_images=None, test_images=None)
    )
    assert run.returncode != 0 and "has one class (dark); a choice of class needs two or more" in run.stderr
    assert not (tmp_path / "run" / "conditional").exists()
