"""The command `saaae`: what it leaves, what it prints where, and its exit codes. Where the process matters it has one
of its own."""

import csv, json, os, shutil, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saaae.tools.cli import main

ROOT = Path(__file__).parent.parent
TOY = ("--image-size", "32", "--patch-size", "4", "--width", "2", "--latent", "4", "--device", "cpu")


def saaae(*line, cwd=None):
    "Run the command; returns the finished process."
    return subprocess.run(
        [sys.executable, "-m", "saaae", *map(str, line)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )


def typed(*line):
    "The same in this process, which has torch already."
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            code = main([*map(str, line)])
        except SystemExit as e:
            code = e.code
    return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())


def refused(run, code, says):
    "Whether a run ended with this exit code, nothing on stdout and, if it is 1, a single sentence on stderr."
    assert run.returncode == code and run.stdout == "" and says in run.stderr, run.stderr
    assert "Traceback" not in run.stderr
    if code == 1:
        assert run.stderr.startswith("saaae: ") and run.stderr.count("\n") == 1, run.stderr
    return True


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    "A folder of 12 images: one colour each, of several shapes and modes, one of them in a folder below."
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(11):
        Image.new("RGB", (40 + i, 50), (20 * i, 100, 255 - 20 * i)).save(folder / f"{i:02}.png")
    (folder / "below").mkdir()
    Image.new("RGBA", (33, 70), (255, 0, 0, 128)).save(folder / "below" / "glass.png")
    return folder


@pytest.fixture(scope="module")
def run(images):
    "A run folder that the command left."
    folder = images.parent / "run"
    done = saaae(
        "train", "--dataset", images.name, *TOY, "--epochs", 2, "--seed", 3, "--out", folder, cwd=images.parent
    )
    assert done.returncode == 0, done.stderr
    assert "| VAE | SAAAE |" in done.stdout and "img/s" not in done.stdout and "img/s" in done.stderr
    return folder


def test_train_leaves_a_run_folder(run):
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "images.sha256",
        "metrics.csv",
        "speed.csv",
        "summary.csv",
        "summary.md",
        "vae.safetensors",
        "saaae.safetensors",
    }
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["epochs"], config["seed"], config["width"], config["preset"]) == (2, 3, 2, "quick")
    assert len(list(csv.DictReader(open(run / "metrics.csv")))) == 4


def test_train_again_uses_the_finished_run_and_keeps_it_from_other_parameters(images, run, monkeypatch):
    monkeypatch.chdir(images.parent)
    line = ("train", "--dataset", images.name, *TOY, "--epochs", 2, "--out", run)
    before = (run / "saaae.safetensors").stat().st_mtime_ns
    assert typed(*line, "--seed", 3).returncode == 0
    assert refused(typed(*line, "--seed", 4), 1, "holds a finished run with seed = 3, not 4")
    assert (run / "saaae.safetensors").stat().st_mtime_ns == before


def test_evaluate_gives_the_figures_of_the_run(images, run, monkeypatch):
    monkeypatch.chdir(images.parent)
    table = typed("evaluate", run).stdout
    expected = {row["model"]: float(row["mse"]) for row in csv.DictReader(open(run / "summary.csv"))}
    expected.pop("linear", None)
    header, mse, *_ = table.splitlines()
    assert dict(zip(header.split(), map(float, mse.split()[-2:]))) == pytest.approx(expected, abs=0.006)


def test_audit_tells_what_a_code_costs(images, run, tmp_path, monkeypatch):
    figure = tmp_path / "audit.png"
    done = typed("audit", "photos64", "--images", 40, "--which", "vae", "--out", figure)
    assert done.returncode == 0, done.stderr
    header, row, said, of, where = done.stdout.splitlines()
    found = dict(zip(header.split(), row.split()))
    assert found["model"] == "vae" and found["latent"] == "64.0" and abs(float(found["leak_bits"])) < 0.01
    assert float(found["mse_mode"]) < float(found["mse"]) and said.startswith("vae: The code of an image costs")
    assert of == "photos64 test, 40 images" and Image.open(figure).width > 300
    assert refused(typed("audit", "photos64", "--out", figure), 1, "is there already")
    assert refused(typed("audit", "photos64", "--which", "gan"), 1, "must be vae or saaae, not gan")
    monkeypatch.chdir(images.parent)
    assert refused(typed("audit", run), 1, "an audit takes at least 40")


def test_evaluate_of_a_run_whose_images_are_gone(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(typed("evaluate", run), 1, "neither photos64, stl10 nor tiny_imagenet, nor a folder")


def test_reconstruct_at_a_rate(images, run, tmp_path):
    out = tmp_path / "out"
    done = typed("reconstruct", images, "--model", run, "--out", out, "--rate", 5)
    assert done.returncode == 0 and done.stdout.startswith("12 of 12 images"), done.stderr
    table = list(csv.DictReader(open(out / "reconstructions.csv")))
    assert {row["file"] for row in table} == {f"{p.relative_to(images)}.png" for p in images.rglob("*.png")}
    for row in table:
        assert float(row["rate_bits"]) == pytest.approx(5, rel=1e-3)
    row = next(r for r in table if r["file"] == "00.png.png")  # PSNR by hand: the clean image is one colour
    error = np.asarray(Image.open(out / row["file"]), float) / 255 - np.array([0, 100, 255]) / 255
    assert float(row["psnr_db"]) == pytest.approx(-10 * np.log10((error**2).mean()), abs=1)


def test_a_reconstruction_is_a_function_of_the_file_alone(images, run, tmp_path):
    "Whatever else is in the folder, before or after it."
    (tmp_path / "alone").mkdir()
    shutil.copy(images / "05.png", tmp_path / "alone")
    for folder in (images, tmp_path / "alone"):
        assert (
            typed("reconstruct", folder, "--model", run, "--out", tmp_path / "of" / folder.name, "--rate", 5).returncode
            == 0
        )
    together, alone = ((tmp_path / "of" / folder / "05.png.png").read_bytes() for folder in (images.name, "alone"))
    assert together == alone


def test_help_and_version_import_nothing_heavy():
    for line in (["--version"], ["--help"], ["evaluate", "--help"], ["tran"]):
        code = (f"import sys\nfrom saaae.tools.cli import main\ntry: main({line!r})\nexcept SystemExit: "
                f"print(sorted({{'torch', 'numpy', 'PIL', 'matplotlib'}} & set(sys.modules)))")
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT))
        )
        assert run.stdout.splitlines()[-1] == "[]", (line, run.stderr)


def test_commands_stand_in_the_order_in_which_they_are_met():
    out = typed("--help").stdout
    commands = ("rebuild encode decode inpaint denoise audit train evaluate reconstruct info demo").split()
    places = [out.index(f"\n    {name}") for name in commands]
    assert places == sorted(places)


def test_commands_for_pictures_do_not_import_what_only_models_need(tmp_path):
    code = ("import sys\nfrom saaae.tools.cli import main\nmain(['rebuild', 'nowhere.png'])\n"
            "print(sorted({'matplotlib', 'pandas', 'torchmetrics', 'torchvision'} & set(sys.modules)))")
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT))
    )
    assert run.stdout == "[]\n", run.stderr


def test_reconstruct_skips_what_is_no_image_and_says_so(images, run, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no image")
    assert typed("reconstruct", folder, "--model", run, "--out", tmp_path / "none").returncode == 1
    Image.new("L", (64, 64), 9).save(folder / "grey.png")
    done = typed("reconstruct", folder, "--model", run, "--out", tmp_path / "out")
    assert done.returncode == 0 and "1 of 2 images" in done.stdout and "broken.png" in done.stderr


def test_info_of_damaged_files_is_one_sentence(run, tmp_path):
    shutil.copytree(run, folder := tmp_path / "run")
    metrics, config = (folder / "metrics.csv").read_bytes(), json.loads((folder / "config.json").read_text())
    for bad in (
        b"nonsense\n1\n",
        metrics.replace(b"model", b"mode", 1),
        metrics.replace(b"epoch", b"epoc", 1),
        metrics + b"vae,x,y\n",
        b"\xff" + metrics,
    ):
        (folder / "metrics.csv").write_bytes(bad)
        assert refused(typed("info", folder), 1, "metrics.csv is not a table of epochs")
    (folder / "metrics.csv").write_bytes(b"")
    assert typed("info", folder).returncode == 0
    for bad in (
        "",
        "[" * 200_000,
        json.dumps(config | dict(git=None)),
        json.dumps(config | dict(config=[])),
        json.dumps(config | dict(config=dict(seed=1))),
    ):
        (folder / "config.json").write_text(bad)
        assert refused(typed("info", folder), 1, "is not the folder of a run")


def test_figures_are_of_the_epoch_that_is_named(run, tmp_path):
    shutil.copytree(run, folder := tmp_path / "run")
    with open(folder / "metrics.csv", "a") as f:
        f.write(
            "vae,9" + "," * (len(open(folder / "metrics.csv").readline().split(",")) - 2) + "\nsaaae,9,5"
        )  # no figures; half a line
    said = typed("info", folder).stdout
    assert "vae       epoch 9 of 2; at epoch 2: MSE" in said and "saaae     epoch 2 of 2; at epoch 2: MSE" in said


def test_empty_names_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in (
        ("train", "--out", ""),
        ("train", "--dataset", "", "--out", "x"),
        ("reconstruct", images, "--out", ""),
        ("info", ""),
    ):
        assert refused(typed(*line), 1, "is empty: name one")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_carry_the_rate_is_skipped_by_name(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "in" / os.fsdecode(b"caf\xe9.png"))
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "in" / "noise.gif"
    )
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "in" / "floats.tif")
    done = typed("reconstruct", tmp_path / "in", "--out", tmp_path / "out", "--rate", 60)
    assert done.returncode == 0 and "2 of 3 images" in done.stdout and "floating-point" in done.stderr
    done = typed("reconstruct", tmp_path / "in", "--out", tmp_path / "none", "--rate", 10**4)
    assert (
        done.returncode == 1
        and f"skipped: {tmp_path / 'in' / 'noise.gif'}: rate_bits" in done.stderr
        and "no image that could be rebuilt" in done.stderr
    )


def test_the_folder_of_the_shipped_pair_is_the_pair():
    assert typed("evaluate", ROOT / "saaae" / "pretrained" / "photos64", "--dataset", "nowhere").stderr.startswith(
        "saaae: dataset"
    )
    assert (
        "epoch 30"
        in subprocess.run(
            [sys.executable, "-m", "saaae.tools.cli", "info", "photos64"],
            capture_output=True,
            text=True,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
        ).stdout
    )


def test_a_terminal_without_arrows_is_no_fault(run, images):
    line = [
        sys.executable,
        "-c",
        "import sys; from saaae.tools.cli import main; sys.exit(main())",
        "evaluate",
        run,
        "--dataset",
        images,
    ]
    done = subprocess.run(
        line,
        capture_output=True,
        text=True,
        encoding="latin-1",
        env=dict(os.environ, PYTHONPATH=str(ROOT), PYTHONIOENCODING="latin-1"),
    )
    assert done.returncode == 0 and "MSE ?" in done.stdout, done.stderr


def test_info_tells_the_run(run):
    said = typed("info", run).stdout
    assert "seed      3" in said and "epoch 2 of 2" in said and "width = 2" in said and "saaae.safetensors" in said
    last = [r for r in csv.DictReader(open(run / "metrics.csv")) if r["model"] == "vae"][-1]
    assert f"MSE {float(last['mse']):.2f}" in said


def test_a_refusal_reaches_the_shell(tmp_path):
    assert refused(saaae("info", tmp_path), 1, "not the folder of a run")
    assert refused(saaae("train"), 2, "--out")


def test_wrong_input(images, run, tmp_path):
    assert refused(typed(), 2, "COMMAND")
    assert refused(typed("train"), 2, "--out")
    assert refused(typed("train", "--out", tmp_path / "x", "--widht", 3), 2, "unrecognized arguments: --widht")
    assert refused(typed("train", "--out", tmp_path / "x", "--width", "wide"), 1, "width must be a whole number")
    assert refused(typed("train", "--out", tmp_path / "x", "--dataset", tmp_path / "nowhere"), 1, "nor a folder")
    assert refused(typed("info", tmp_path), 1, "not the folder of a run")
    assert refused(typed("evaluate", "photos65"), 1, "neither photos64 nor the folder of a run")
    assert refused(typed("reconstruct", images, "--model", run, "--out", images / "out"), 1, "--out must be outside")
    assert refused(
        typed("reconstruct", images, "--model", run, "--out", tmp_path / "out", "--which", "gan"),
        1,
        "choose with --which",
    )
    assert refused(
        typed("reconstruct", images, "--model", run, "--out", tmp_path / "out", "--rate", "many"), 2, "invalid float"
    )
    bad = typed("reconstruct", images, "--model", run, "--out", tmp_path / "out", "--rate", -1)
    assert bad.returncode == 1 and "rate_bits must be at least 0" in bad.stderr and "Traceback" not in bad.stderr


def test_damaged_weights_are_named(run, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for p in run.iterdir():
        (copy / p.name).write_bytes(p.read_bytes())
    (copy / "vae.safetensors").write_bytes(b"damaged")
    assert refused(typed("evaluate", copy), 1, "vae.safetensors is damaged")
    (copy / "vae.safetensors").unlink(), (copy / "saaae.safetensors").unlink()
    assert refused(typed("evaluate", copy), 1, "holds no trained model")
