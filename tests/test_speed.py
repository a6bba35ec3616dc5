"What is done for speed changes no number, and the benchmark says what it measured."

from dataclasses import replace

import pandas as pd
import pytest

from conftest import papermill
from saaae.tools.benchmark import loss_difference
from saaae.sources.photos64 import photos64
from saaae.lab.controls import configure
from saaae.training import Learner, build_model, build_models, train_epoch

TOY = configure(
    "small",
    width=2,
    latent=4,
    image_size=16,
    patches=2,
    patch_size=4,
    epochs=2,
    grid_epochs=[1, 2],
    batch_size=16,
    train_images=40,
    attention="linear",
    device="cpu",
)


@pytest.mark.parametrize(
    "change", [dict(gate="off"), dict(attention="linear"), dict(attention="patch")], ids=["vae", "linear", "patch"]
)
def test_first_steps_of_the_published_layers_are_those_of_a_plain_loop(change):
    """Widths as published but for the image, which makes linear attention 256 times smaller; more images than latent
    dimensions, so that it takes its cheaper way."""
    cfg = replace(
        configure("stl10", dataset="photos64", epochs=1, image_size=16, patch_size=4, batch_size=160, device="cpu"),
        **change,
    )
    assert loss_difference(cfg, photos64("train", 160, 16)) < 1e-4


@pytest.mark.slow
def test_compiled_training_is_eager_training():
    images, losses = photos64("train", 40, 16), {}
    for compiled in (False, True):
        cfg = replace(TOY, compile=compiled)
        learner = Learner(build_models(cfg)["saaae"], cfg, 6)
        losses[compiled] = [train_epoch(learner, images, cfg, epoch)["train_loss"] for epoch in (1, 2)]
        assert list(learner.model.state_dict()) == list(build_model(TOY).state_dict())  # weights keep their names
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.slow
def test_benchmark(tmp_path):
    "make bench at its least: one model, one round of one step."
    run = papermill("bench.ipynb", tmp_path / "out", rounds=1, steps=1, models=["vae"], growth=False, device="cpu")
    assert run.returncode == 0, run.stderr[-3000:]
    (path,) = (tmp_path / "out").glob("*.csv")
    table = pd.read_csv(path).set_index("loop")
    assert list(table.index) == ["straight-line", "pythae", "saaae"] and (table.model == "vae").all()
    assert table.ratio.tolist() == pytest.approx(
        (table.images_per_s / table.images_per_s["straight-line"]).tolist(), rel=1e-4
    )
    assert table.limit_share.tolist() == pytest.approx(
        (table.images_per_s * table.gflop_per_image / table.matmul_gflops).tolist(), rel=1e-4
    )
    # a training step is three products of each layer's size, two of the first layer's: the published layers by hand
    forward = [
        3 * 16 * 64 * 32**2,
        64 * 16 * 128 * 16**2,
        128 * 16 * 256 * 8**2,
        256 * 16 * 512 * 4**2,
        2 * 8192 * 128,
        128 * 8192,
        512 * 16 * 256 * 4**2,
        256 * 16 * 128 * 8**2,
        128 * 16 * 64 * 16**2,
        64 * 16 * 3 * 32**2,
    ]
    assert table.gflop_per_image.tolist() == pytest.approx([2e-9 * (3 * sum(forward) - forward[0])] * 3, rel=1e-3)
    assert path.with_suffix(".png").stat().st_size > 10_000 and "not measured" in path.with_suffix(".md").read_text()
