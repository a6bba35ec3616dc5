"Runs followed while they train, and trackers: without a browser, against what the run folders hold."

import asyncio, contextlib, io, json, os, shutil, subprocess, sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, papermill
from matplotlib.colors import to_hex
from PIL import Image

from saaae.tools import watching
from saaae.sources.load import load_images
from saaae.config import ConfigError, configure
from saaae.training import build_models
from saaae.runs.checkpoint import append_row
from saaae.runs.folder import train
from saaae.tools.watching import View, check_tracker, colour, draw_runs, png, tracking

TOY = configure(
    "small",
    width=2,
    latent=4,
    image_size=16,
    patches=2,
    patch_size=4,
    epochs=4,
    grid_epochs=[1],
    batch_size=8,
    train_images=16,
    device="cpu",
)

TRAIN = """
import sys, time
import matplotlib; matplotlib.use("agg")
import matplotlib.pyplot as plt
from pathlib import Path
from saaae.sources.load import load_images
from saaae.config import configure
from saaae.training import build_models
from saaae.runs.folder import train
cfg = configure("small", width=2, latent=4, image_size=16, patches=2, patch_size=4, epochs=6, grid_epochs=[1, 3, 6], \
batch_size=8, train_images=16, device="cpu")
folder = Path(sys.argv[1])
def draw(models, epoch):
    (folder/"recon").mkdir(exist_ok=True)
    plt.imsave(folder/"recon"/f"epoch_{epoch:04d}.png", [[epoch, 0]], vmin=0, vmax=9)
rows = 0
def evaluate(model, epoch):
    global rows
    while not (folder/f"{rows} rows seen").exists(): time.sleep(.02)
    rows += 1
    return dict(mse=1 / epoch, rate_bits=2 * epoch)
train(build_models(cfg), load_images(cfg.dataset, "train", 16, 16), cfg, folder, evaluate, draw)
"""


class InterruptedRun(Exception):
    pass


async def until(happens):
    "Wait for what must come, however slow the machine."
    for _ in range(12_000):
        if happens():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("It did not happen within ten minutes.")


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_run_that_trains_is_followed(tmp_path):
    """The timer looks by itself: rows grow, curves and picture change, and end as the folder does. Training waits
    until each row was seen."""
    run = tmp_path / "run"
    sentences, pictures, curves = set(), [], set()

    async def follow():
        view = View(run, every=0.2)
        view.start()
        await until(lambda: view.says.value)
        sentences.add(view.says.value)
        run.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, run], stdout=subprocess.DEVNULL, env=dict(os.environ, PYTHONPATH=str(ROOT))
        )
        try:
            for row in range(12):
                await until(lambda: len(view.rows) == row or process.poll())
                if view.grid.value not in pictures:
                    pictures.append(view.grid.value)
                curves.add(view.curves.value)
                (run / f"{row} rows seen").touch()
            await until(lambda: process.poll() is not None)
            await until(lambda: len(view.rows) == 12 and "epoch_0006" in view.caption.value)
        finally:
            process.kill()
        assert process.returncode == 0
        view.stop()
        drawn, looks = view.curves.value, len(view.rows)
        append_row(run / "metrics.csv", dict(model="vae", epoch=7))
        await asyncio.sleep(0.5)
        assert (view.curves.value, len(view.rows), view.task) == (drawn, looks, None)  # stopped
        return view

    view = asyncio.run(follow())
    assert len(curves) > 3
    assert f"{run} is not there." in sentences and view.says.value == ""
    expected = pd.read_csv(run / "metrics.csv").iloc[:12]
    assert len(view.rows) == 12 and view.rows[list(expected)].equals(expected.astype(view.rows[list(expected)].dtypes))
    assert view.grid.value == (run / "recon" / "epoch_0006.png").read_bytes() and len(pictures) >= 3


def test_half_written_lines_wait_and_runs_come_and_go(tmp_path):
    view = View(f"{tmp_path}/runs/*/seed_*", columns=["mse"])
    view.refresh()
    assert view.sentences == [f"Nothing matches {tmp_path}/runs/*/seed_* yet."]
    blank = pixels(view.curves.value)

    def run(variant, seed):
        folder = tmp_path / "runs" / variant / f"seed_{seed}"
        folder.mkdir(parents=True)
        return folder

    first = run("vae", 0)
    view.refresh()
    assert view.sentences == [f"{first} has no metrics.csv yet."]
    for epoch in (1, 2):
        append_row(first / "metrics.csv", dict(model="vae", epoch=epoch, mse=4.0 / epoch))
    with open(first / "metrics.csv", "a") as f:
        f.write("vae,3,1.2")  # of 1.25
    view.refresh()
    assert view.rows.mse.tolist() == [4, 2] and (pixels(view.curves.value) != blank).any()
    one = view.curves.value
    with open(first / "metrics.csv", "a") as f:
        f.write("5\n")
    view.refresh()
    assert view.rows.mse.tolist() == [4, 2, 1.25] and (pixels(view.curves.value) != pixels(one)).any()

    for variant, seed in (("vae", 1), ("saaae", 0)):
        folder = run(variant, seed)
        append_row(folder / "metrics.csv", dict(model=variant, epoch=1, mse=3.0))
    view.refresh()
    assert view.shown.options == view.shown.value == ("vae", "saaae") and view.sentences == []
    view.shown.value = ["vae"]
    several = pixels(view.curves.value)
    view.band.value = False
    assert (pixels(view.curves.value) != several).any()
    append_row(run("anchored", 0) / "metrics.csv", dict(model="anchored", epoch=1, mse=3.0))
    view.refresh()
    assert view.shown.value == ("vae", "anchored")  # the choice stays, a new variant is shown

    shutil.rmtree(first)
    view.refresh()
    assert view.sentences == [f"{first} is not there."] and len(view.rows) == 3
    append_row(run("vae", 0) / "metrics.csv", dict(model="vae", epoch=1, mse=9.0))
    view.refresh()
    assert view.sentences == [] and 9 in view.rows.mse.tolist()


def test_a_look_that_fails_does_not_end_the_watch(tmp_path, monkeypatch):
    append_row(tmp_path / "metrics.csv", dict(model="vae", epoch=1, mse=1.0))

    async def follow():
        view = View(tmp_path, every=0.2)
        with monkeypatch.context() as m:
            m.setattr(watching, "newest_grid", lambda folders: 1 / 0)
            view.button.click()
            await until(lambda: "failed" in view.says.value)
            failed = view.says.value
        await until(lambda: not view.says.value)
        view.button.click()
        return failed, view

    failed, view = asyncio.run(follow())
    assert (
        "This look failed (ZeroDivisionError" in failed
        and view.says.value == ""
        and view.task is None
        and view.button.description == "Follow"
    )


def outputs(notebook):
    return [o for c in json.loads(notebook.read_text())["cells"] for o in c.get("outputs", [])]


def test_notebook_draws_once_headless(tmp_path):
    for variant in ("vae", "saaae"):
        for seed in range(2):
            (run := tmp_path / variant / f"seed_{seed}").mkdir(parents=True)
            for epoch in (1, 2, 3):
                append_row(run / "metrics.csv", dict(model=variant, epoch=epoch, mse=(9 + seed) / epoch))
    runs = [f"{tmp_path}/{v}/seed_*" for v in ("vae", "saaae")] + [str(ROOT / "results" / "quick"), "nowhere"]
    command = [
        sys.executable,
        "-m",
        "papermill",
        ROOT / "nbs" / "tools" / "watch.ipynb",
        tmp_path / "seen.ipynb",
        "-k",
        "python3",
        "--no-progress-bar",
        "-y",
        json.dumps(dict(runs=runs)),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "JPY_SESSION_NAME"} | dict(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    images = [o["data"]["image/png"] for o in outputs(tmp_path / "seen.ipynb") if "image/png" in o.get("data", {})]
    assert len(images) == 2
    assert "nowhere is not there." in "".join("".join(o.get("text", "")) for o in outputs(tmp_path / "seen.ipynb"))


def test_live_view_runs_on_the_kernel_s_own_loop(tmp_path):
    "The watch notebook in a real kernel: rows appended between two cells are seen without a further call."
    import nbformat
    from nbclient import NotebookClient

    append_row(tmp_path / "metrics.csv", dict(model="vae", epoch=1, mse=1.0))
    notebook = nbformat.read(ROOT / "nbs" / "tools" / "watch.ipynb", 4)
    setting = next(i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", []))
    notebook.cells.insert(setting + 1, nbformat.v4.new_code_cell(f"runs, every, live = {str(tmp_path)!r}, .2, True"))
    notebook.cells += [
        nbformat.v4.new_code_cell(s)
        for s in (
            "import asyncio\nfrom pathlib import Path\nfrom saaae.runs.checkpoint import append_row\nwhile not "
            "len(view.rows): await asyncio.sleep(.1)\nprint(len(view.rows))",
            "append_row(Path(view.rows.run[0])/'metrics.csv', dict(model='vae', epoch=2, mse=.5))\nwhile "
            "len(view.rows) < 2: await asyncio.sleep(.1)\nprint(len(view.rows), view.task.done())",
        )
    ]
    done = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources=dict(metadata=dict(path=str(ROOT / "nbs")))
    ).execute()
    assert [c.outputs[0].text for c in done.cells[-2:]] == ["1\n", "2 False\n"]
    assert any(
        "application/vnd.jupyter.widget-view+json" in o.get("data", {})
        for c in done.cells
        for o in c.get("outputs", [])
    )


def toy(folder, tracker=None, cfg=TOY, stop_after=None):
    "Train the toy; with `stop_after`, fail once that epoch is drawn."

    def draw(models, epoch):
        if epoch == stop_after:
            raise InterruptedRun

    evaluate = lambda model, epoch: dict(mse=float(model.to_mu.weight.detach().abs().sum()))
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(InterruptedRun),
        tracking(tracker, folder, cfg) as log,
    ):
        train(
            build_models(cfg),
            load_images(cfg.dataset, "train", 16, 16),
            cfg,
            folder,
            evaluate,
            draw,
            checkpoint_seconds=0,
            log=log,
        )


def logged(folder):
    "What TensorBoard itself reads: (model, column, epoch, value)."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance=dict(scalars=0)).Reload()
    return sorted((*tag.split("/"), e.step, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag))


def written(folder):
    metrics = pd.read_csv(folder / "metrics.csv")
    figures = [c for c in metrics if c not in ("model", "epoch")]
    return sorted(
        (r.model, c, r.epoch, float(np.float32(getattr(r, c))))
        for r in metrics.itertuples()
        for c in figures
        if not pd.isna(getattr(r, c))
    )


def test_tensorboard_gets_what_metrics_csv_gets(tmp_path):
    cfg = replace(TOY, grid_epochs=(1, 2))
    toy(tmp_path / "run", "tensorboard", cfg)
    assert len(written(tmp_path / "run")) == 2 * 4 * 5 and logged(tmp_path / "run") == written(tmp_path / "run")
    toy(tmp_path / "plain", cfg=cfg)
    for name in ("metrics.csv", "saaae.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (
            tmp_path / "plain" / name
        ).read_bytes()  # a tracker changes no number
    assert not (tmp_path / "plain" / "tensorboard").exists()

    # stopped after the second epoch is logged and before its checkpoint, then gone on with: nothing twice
    toy(tmp_path / "stopped", "tensorboard", cfg, stop_after=2)
    assert {e for _, _, e, _ in logged(tmp_path / "stopped")} == {1, 2}
    toy(tmp_path / "stopped", "tensorboard", cfg)
    assert logged(tmp_path / "stopped") == written(tmp_path / "run")

    # afresh in the same folder: the earlier run is gone there too
    for path in (*(tmp_path / "run").glob("*.safetensors"), tmp_path / "run" / "config.json"):
        path.unlink()
    other = replace(cfg, seed=1, epochs=2)
    toy(tmp_path / "run", "tensorboard", other)
    assert logged(tmp_path / "run") == written(tmp_path / "run") and {e for _, _, e, _ in logged(tmp_path / "run")} == {
        1,
        2,
    }


def test_trackers_are_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="tracker must be None or one of tensorboard, wandb, not 'comet'"):
        with tracking("comet", tmp_path / "run", TOY):
            pass
    monkeypatch.setattr(watching, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(ConfigError, match="tracker 'wandb' needs wandb: pip install wandb$"):
        check_tracker("wandb")
    check_tracker("tensorboard")
    monkeypatch.setattr(watching, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs accelerate and tensorboard: pip install accelerate tensorboard$"):
        check_tracker("tensorboard")
    assert not (tmp_path / "run").exists()


def test_main_notebook_takes_a_tracker(tmp_path):
    few = dict(epochs=2, width=2, train_images=40, test_images=10, batch_size=16, grid_epochs=[2], device="cpu")
    wrong = papermill("SAAAE_image_mask-linear.ipynb", tmp_path / "wrong", preset="quick", tracker="tensorbord", **few)
    assert (
        wrong.returncode != 0
        and "one of tensorboard, wandb, not 'tensorbord'" in wrong.stderr
        and not (tmp_path / "wrong" / "metrics.csv").exists()
    )
    run = papermill("SAAAE_image_mask-linear.ipynb", tmp_path / "run", preset="quick", tracker="tensorboard", **few)
    assert run.returncode == 0, run.stderr[-3000:]
    assert logged(tmp_path / "run") == written(tmp_path / "run") != []


def test_no_two_curves_look_alike():
    names = ["constant", "ae", "saaae", "vae", *(f"run {i}" for i in range(28))]
    styles = [
        tuple({**colour(i, name), "color": to_hex(colour(i, name)["color"])}.values()) for i, name in enumerate(names)
    ]
    assert len(set(styles)) == len(names)


def test_many_curves_leave_room_for_the_panels():
    rows = pd.DataFrame(
        [
            dict(curve=f"run {i}: {m}", run=str(i), model=m, epoch=e, mse=100.0 - e)
            for i in range(40)
            for m in ("vae", "saaae")
            for e in (1, 2)
        ]
    )
    fig = draw_runs(rows, "mse")
    png(fig)
    assert len(fig.axes) == 1 and fig.axes[0].get_window_extent().height > 150
