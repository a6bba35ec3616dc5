"Runs on several processes, as launchers start them, against the run on one: same numbers, no hang, refusals by name."

import json, os, shutil, signal, socket, subprocess, sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch

from saaae.tools.cli import main
from saaae.sources.files import read_tensors
from saaae.runs.checkpoint import CHECKPOINT
from saaae.runs.folder import lock_folder

ROOT = Path(__file__).parent.parent
TRAIN = """
import json, os, signal, sys
from saaae.sources.load import load_images
from saaae.lab.controls import configure
from saaae.config import ConfigError
from saaae.training import TrainingError, build_models
from saaae.runs.folder import train

rank, seen = int(os.environ.get("RANK", 0)), 0
def breaks(how):
    def hook(*_):
        global seen
        seen += 1
        if seen == 4 and how == "raise": raise ValueError("broken on purpose")
        if seen == 4: os.kill(os.getpid(), signal.SIGKILL)
    return hook

for folder, given in json.loads(sys.argv[1]).items():
    stop, how, other = (given.pop(k, None) for k in ("stop", "breaks", "other_seed"))
    cfg = configure("small", **dict(image_size=16, patch_size=4, width=2, latent=4, attention="linear", epochs=2, \
batch_size=7, device="cpu") | given)
    images = load_images("photos64", "train", 16, 30)
    if other and rank: cfg = configure(**vars(cfg) | dict(seed=1))
    models = build_models(cfg)
    if how in ("raise", "kill") and rank == 1: models["vae"].register_forward_pre_hook(breaks(how))
    def draw(models, epoch):
        if epoch == stop: raise KeyboardInterrupt
        if how == "disk": raise OSError(28, "no space left")
    try: train(models, images, cfg, folder, lambda m, epoch: dict(weight=m.to_mu.weight.norm().item()), draw, \
checkpoint_seconds=0)
    except (ConfigError, TrainingError) as e: sys.exit(f"{type(e).__name__}: {e}")
    except KeyboardInterrupt: os._exit(7)  # at once, as one that is killed
"""
SLOW = dict(
    schedule="constant", lr=2e-4, attention="patch"
)  # min-max and Adam enlarge rounding errors, most those of linear attention
CONFIGS = {  # what draws numbers, or has a shape of its own
    "linear": {},
    "patch": SLOW | dict(noise_std=0.2, noise_varies=True, gate="shuffled_dimensions", aim="edges"),
    "published": SLOW | dict(attention="linear", shared_masks=True, noise_bank=True, floor=0.0),
    "regions": SLOW | dict(latent="spatial", t_range=4.0, regions=True),
    "told": SLOW | dict(t_range=4.0, multirate="both", gate="bottleneck", aim="foreground"),
    "classes": SLOW | dict(classes=12, gate="random", trains="decoder"),
}


def start(count, *line, cwd=ROOT):
    "Processes without anyone who watches over them: rank by rank, as a scheduler of a cluster starts them."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    environments = [
        dict(env, RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(count)) if count > 1 else env for r in range(count)
    ]
    return [
        subprocess.Popen(
            [sys.executable, *map(str, line)],
            cwd=cwd,
            env=own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in environments
    ]


def finish(processes, seconds=900):
    "Their exit codes and what they said on stderr; a hang is an error."
    try:
        said = [p.communicate(timeout=seconds)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [p.returncode for p in processes], said


def trains(count, runs):
    return finish(start(count, "-c", TRAIN, json.dumps({str(k): v for k, v in runs.items()})))


def apart(ours, theirs, names):
    "The distance of two sets of tensors, taken as one vector each, in units of the first's length."
    one, other = (np.concatenate([t[name].double().numpy().ravel() for name in sorted(names)]) for t in (ours, theirs))
    return np.linalg.norm(one - other) / np.linalg.norm(one)


def assert_same(a, b):
    """Metrics of two run folders agree to 1e-5, and so do weights and Adam's first moments: means in the place of
    sums would halve these, and nothing else.

    The weights that make queries and keys are let off with 1e-3, and their biases altogether: their gradients are
    small differences of large numbers
    (those of the keys' bias nothing but rounding errors), and Adam's step does not depend on a gradient's size."""
    one, other = (pd.read_csv(folder / "metrics.csv") for folder in (a, b))
    assert list(one.model) == list(other.model) and list(one.epoch) == list(other.epoch) and len(one)
    for column in one.columns.drop("model"):
        np.testing.assert_allclose(one[column], other[column], rtol=1e-5, atol=1e-6, err_msg=column)
    for model in ("vae", "saaae"):
        weights = [safetensors.torch.load_file(folder / f"{model}.safetensors") for folder in (a, b)]
        assert weights[0].keys() == weights[1].keys()
        attends = {k for k in weights[0] if "in_proj" in k}
        assert apart(*weights, weights[0].keys() - attends) <= 1e-5, model
        for k in attends:
            assert k.endswith("bias") or apart(*weights, [k]) <= 1e-3, k
        if not (a / CHECKPOINT).exists():
            continue
        states = [safetensors.torch.load_file(folder / CHECKPOINT) for folder in (a, b)]
        assert apart(*states, [k for k in states[0] if k.startswith(model) and k.endswith("exp_avg")]) <= 1e-5, model


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "A folder of runs on one process."
    root = tmp_path_factory.mktemp("alone")
    codes, said = trains(1, {root / name: given for name, given in CONFIGS.items()} | {root / "longer": dict(epochs=4)})
    assert codes == [0], said
    return root


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_processes_gives_the_numbers_of_one(alone, tmp_path, count):
    "30 images in batches of 7: the last has 2, and with three processes one of them has none of it."
    codes, said = trains(count, {tmp_path / name: given for name, given in CONFIGS.items()})
    assert codes == [0] * count, said
    for name in CONFIGS:
        assert_same(alone / name, tmp_path / name)


def test_the_command_behind_accelerate(tmp_path):
    "The command, unchanged, by Accelerate's launcher; the same in one process."
    script = tmp_path / "saaae"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom saaae.tools.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    line = ("train --dataset photos64 --image-size 16 --patch-size 4 --width 2 --latent 4 --train-images 20 "
            "--test-images 5 --epochs 2 --batch-size 8 --device cpu --out").split()
    assert main([*line, str(tmp_path / "one")]) == 0
    launch = [
        Path(sys.executable).with_name("accelerate"),
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "--no_python",
        script,
    ]
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    run = subprocess.run([*launch, *line, tmp_path / "two"], env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0 and run.stdout.count("The run is in") == 1, run.stderr
    written = (tmp_path / "two" / "saaae.safetensors").stat().st_mtime
    assert finish(start(2, script, *line, tmp_path / "two"))[0] == [0, 0]  # again: the finished run is found
    assert (tmp_path / "two" / "saaae.safetensors").stat().st_mtime == written
    assert_same(tmp_path / "one", tmp_path / "two")
    columns = ["mse", "loss", "rate_bits"]
    np.testing.assert_allclose(
        *(pd.read_csv(tmp_path / name / "summary.csv")[columns] for name in ("one", "two")), rtol=1e-5
    )
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_another_number(alone, tmp_path):
    "One process until epoch 2, two until epoch 3, and three to the end, or one."
    grids = dict(epochs=4, grid_epochs=[2, 3])
    trains(1, {tmp_path / "run": grids | dict(stop=2)})
    trains(2, {tmp_path / "run": grids | dict(stop=3)})
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert (
        read_tensors(tmp_path / "run" / CHECKPOINT)[1]["epoch"] == 2
        and not (tmp_path / "run" / "vae.safetensors").exists()
    )
    codes, said = trains(3, {tmp_path / "run": grids})
    assert codes == [0] * 3, said
    assert trains(1, {tmp_path / "other": grids})[0] == [0]
    for name in ("run", "other"):
        assert_same(alone / "longer", tmp_path / name)


@pytest.mark.parametrize("how", ["raise", "kill", "disk"])
def test_what_stops_one_stops_all(tmp_path, how):
    "Without a launcher that would end the others: an error or a kill of the second process, a full disk in the first."
    (first, second), said = trains(2, {tmp_path / "run": dict(epochs=50, grid_epochs=[3], breaks=how)})
    assert first == 1
    gone = "TrainingError: Another process of this run stopped; its own message says why."
    if how == "disk":
        assert second == 1 and "The disk is full" in said[0] and "keeps epoch 2" in said[0] and gone in said[1]
    else:
        assert gone in said[0] and second == (1 if how == "raise" else -signal.SIGKILL)
    if how == "raise":
        assert "broken on purpose" in said[1]
    assert not (tmp_path / "run" / ".lock").exists() and not (tmp_path / "run" / "vae.safetensors").exists()


def test_what_cannot_be_shared_is_refused(tmp_path):
    codes, said = trains(2, {tmp_path / "run": dict(normalize="batch", decoder_variance="optimal")})
    assert codes == [1, 1]
    for text in said:
        assert (
            "ConfigError: normalize 'batch' and decoder_variance 'optimal' cannot be computed by several processes"
            in text
        )
    codes, said = trains(2, {tmp_path / "run": dict(other_seed=True)})
    assert codes == [1, 1] and "Process 1 has another config" in said[1]


def test_a_folder_in_use_is_refused_to_all(tmp_path):
    with lock_folder(tmp_path / "run"):
        codes, said = trains(2, {tmp_path / "run": {}})
        assert codes == [1, 1]
        for text in said:
            assert f"is in use by another run (process {os.getpid()} on {socket.gethostname()})" in text


def test_one_process_does_not_import_accelerate(tmp_path):
    (run,) = start(1, "-c", TRAIN + "\nassert 'accelerate' not in sys.modules", json.dumps({str(tmp_path / "run"): {}}))
    assert finish([run])[0] == [0]


def test_the_plan_is_what_its_program_says(tmp_path):
    """The committed tables; and a ring that is played through sends what the formula says, and ends with the sum
    everywhere."""
    spec = spec_from_file_location("scaling", ROOT / "docs" / "scaling.py")
    spec.loader.exec_module(scaling := module_from_spec(spec))
    scaling.main(tmp_path)
    for name in ("plan.csv", "plan.md"):
        assert (tmp_path / name).read_text() == (ROOT / "results" / "scaling" / name).read_text()
    n, held = 5, np.arange(50.0).reshape(5, 5, 2)  # process, part, values of a part
    total, sent = held.sum(0), 0
    for turn in range(2 * (n - 1)):
        moving = [(r, (r - turn) % n, held[r, (r - turn) % n].copy()) for r in range(n)]
        for r, part, values in moving:
            held[(r + 1) % n, part] = held[(r + 1) % n, part] + values if turn < n - 1 else values
            sent += values.nbytes
    assert (held == total).all() and sent / n == scaling.ring_bytes(total.nbytes, n)


def test_counted_operations(tmp_path):
    """A VAE's, against a sum over its layers: two operations a multiplication, once forwards, once for weights, once
    for inputs but those of the first."""
    spec = spec_from_file_location("scaling", ROOT / "docs" / "scaling.py")
    spec.loader.exec_module(scaling := module_from_spec(spec))
    channels, sides = (3, 64, 128, 256, 512), (32, 16, 8, 4)
    layers = [
        16 * a * b * s**2 for a, b, s in zip(channels, channels[1:], sides)
    ]  # encoder; the decoder's are the same
    heads = [8192 * 128] * 3
    assert scaling.step_flops("VAE", 2) == 2 * 2 * (3 * (2 * sum(layers) + sum(heads)) - layers[0])
