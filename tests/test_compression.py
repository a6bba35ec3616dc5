"Latent compression: streams in other processes, damaged ones, any image from the command line, and the notebook at toy size."
import io, json, math, os, random, subprocess, sys, zlib
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import ROOT, papermill, rows
from PIL import Image

from saaae.compression import CodecError, fit_codec, payload_bytes
from saaae.data import photos64
from saaae.training import build_model, configure, save_weights

TOY = dict(epochs=1, width=2, train_images=40, test_images=8, probe_images=40, budgets=[16, 48, 384], device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder with a VAE and a SAAAE, untrained, whose codes carry something."
    folder = tmp_path_factory.mktemp("run")
    cfg = configure("quick", width=2, latent=16, train_images=30, device="cpu", gate="precision", epochs=1)
    for name, gate in dict(vae="off", saaae="precision").items():
        model = build_model(configure(**asdict(cfg) | dict(gate=gate)))
        with torch.no_grad(): model.to_mu.weight.mul_(300), model.to_logvar.bias.sub_(6)
        save_weights(model, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(config=asdict(cfg))))
    return folder


def command(*given, **env):
    "The command line in a process of its own."
    return subprocess.run([sys.executable, "-m", "saaae.compression", *map(str, given)], cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


def pictures(folder):
    "Images of every kind, by name; returns their sizes as a viewer shows them."
    rng, photo = np.random.RandomState(0), photos64("test", 4).pixels.permute(0, 2, 3, 1).numpy()
    (folder / "deep" / "er").mkdir(parents=True)
    save = lambda name, pixels, **more: Image.fromarray(pixels).save(folder / name, **more)
    save("a.png", photo[0]), save("a.jpg", photo[1])
    save("grey.png", photo[2][..., 0]), save("rgba.png", np.dstack([photo[2], photo[2][..., 0]]))
    save("deep.png", photo[0][..., 0].astype(np.uint16) * 257)
    save("deep/er/wide.png", np.hstack(photo)[:20]), save("deep/one.png", photo[0][:1, :1]), save("tiny.png", photo[0][:3, :5])
    turned = Image.Exif()
    turned[0x0112] = 6
    save("turned.jpg", photo[0][:30], exif=turned)
    sizes = dict(zip(("a.png", "a.jpg", "grey.png", "rgba.png", "deep.png"), [(64, 64)] * 5))
    return sizes | {"deep/er/wide.png": (256, 20), "deep/one.png": (1, 1), "tiny.png": (5, 3), "turned.jpg": (30, 64)}


def test_any_image_there_and_back_in_other_processes(tmp_path, run):
    sizes = pictures(tmp_path / "in")
    done = command("encode", tmp_path / "in", tmp_path / "bytes", "--model", run, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert {str(p.relative_to(tmp_path / "bytes")) for p in (tmp_path / "bytes").rglob("*") if p.is_file()} == {f"{n}.saz" for n in sizes}
    for threads in ("1", "2"):
        done = command("decode", tmp_path / "bytes", tmp_path / threads, "--model", run / "codec" / "saaae.safetensors", OMP_NUM_THREADS=threads)
        assert done.returncode == 0, done.stderr
    for name, size in sizes.items():
        one, two = ((tmp_path / t / f"{name}.png").read_bytes() for t in "12")
        image = Image.open(io.BytesIO(one))
        assert one == two and (image.size, image.mode) == (size, "RGB"), name


def test_refused_files_are_named_and_the_rest_goes_on(tmp_path, run):
    pictures(tmp_path / "in")
    (tmp_path / "in" / "deep" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "half.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:900])
    done = command("encode", tmp_path / "in", tmp_path / "bytes", "--model", run, "--rate", "60")
    assert done.returncode == 1
    refused = [line for line in done.stderr.splitlines() if line.startswith("refused")]
    assert len(refused) == 2 and "deep/notes.txt" in refused[0] + refused[1] and "half.png" in refused[0] + refused[1]
    streams = sorted(p for p in (tmp_path / "bytes").rglob("*") if p.is_file())
    assert len(streams) == 9 and "9 of 11" in done.stdout
    for p in streams:
        tiles = 4 if p.name.startswith("wide") else 1
        assert payload_bytes(p.read_bytes()) <= 60 * tiles / 8 + 2
    foreign, short, other = (tmp_path / "bytes" / n for n in ("foreign.saz", "short.saz", "version.saz"))
    foreign.write_bytes(b"something else"), short.write_bytes(streams[0].read_bytes()[:-3])
    body = streams[0].read_bytes()[:-4]
    other.write_bytes((body := body[:2] + b"\x09" + body[3:]) + zlib.crc32(body).to_bytes(4))
    done = command("decode", tmp_path / "bytes", tmp_path / "out", "--model", run)
    assert done.returncode == 1 and len(list((tmp_path / "out").rglob("*.png"))) == 9
    for name, reason in (("foreign.saz", "not a stream"), ("short.saz", "truncated"), ("version.saz", "version 9")):
        assert any(name in line and reason in line for line in done.stderr.splitlines()), done.stderr
    done = command("decode", tmp_path / "bytes", tmp_path / "vae", "--model", run / "vae.safetensors")
    assert done.returncode == 1 and done.stderr.count("another model") == 9 and not list((tmp_path / "vae").rglob("*.png"))


def test_what_cannot_begin_is_refused(tmp_path, run):
    (tmp_path / "empty").mkdir(), (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    for source, out, model, reason in (("empty", "out", run, "holds no files"), ("nowhere", "out", run, "is not a folder"), ("in", "in", run, "other than IN_FOLDER"),
                                       ("in", "out", tmp_path / "nothing", "neither a codec file"), ("in", "out", tmp_path / "in" / "a.png", "cannot be read as a codec file")):
        done = command("encode", tmp_path / source, tmp_path / out, "--model", model)
        assert done.returncode != 0 and reason in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "out").exists(), done.stderr


def test_damage_is_always_refused(run):
    cfg = configure("quick", width=2, latent=16, device="cpu", gate="precision", epochs=1)
    codec = fit_codec(build_model(cfg), cfg, photos64("train", 30))
    stream = codec.encode(Image.fromarray(photos64("test", 1).pixels[0].permute(1, 2, 0).numpy()))
    codec.decode(stream)
    rng = random.Random(0)
    damaged = [stream[:n] for n in range(len(stream))] + [stream + b"\0"]
    for _ in range(2000):
        bits = int.from_bytes(stream)
        for place in rng.sample(range(8 * len(stream)), rng.randint(1, 8)): bits ^= 1 << place
        damaged.append(bits.to_bytes(len(stream)))
    for data in damaged:
        with pytest.raises(CodecError): codec.decode(data)


def test_toy(tmp_path):
    done = papermill("compression.ipynb", tmp_path, **TOY)
    assert done.returncode == 0, done.stderr[-3000:]
    table = rows(tmp_path / "compression.csv")
    assert list(table[0]) == ["method", "setting", "measure", "value", "n"]
    assert {r["method"] for r in table} >= {"vae", "saaae", "jpeg", "webp"} and {r["measure"] for r in table} >= {"psnr_db", "ssim", "payload_bytes"}
    assert all(math.isfinite(float(r["value"])) for r in table)
    get = {(r["method"], r["setting"], r["measure"]): float(r["value"]) for r in table}
    for method in ("jpeg", "webp"): assert get[method, "bytes 384, without headers", "psnr_db"] >= get.get((method, "bytes 384", "psnr_db"), 0)
    assert ("jpeg", "bytes 48", "psnr_db") not in get  # its tables alone are larger
    assert (tmp_path / "compression.png").stat().st_size > 20_000 and (tmp_path / "compression.md").read_text().startswith("| compression")
    weights = (tmp_path / "compression" / "saaae.safetensors").stat().st_mtime_ns
    Image.new("RGB", (70, 10), "orange").save(tmp_path / "a.png")
    (tmp_path / "in").mkdir(), (tmp_path / "a.png").rename(tmp_path / "in" / "a.png")
    assert command("encode", tmp_path / "in", tmp_path / "bytes", "--model", tmp_path / "compression").returncode == 0
    again = papermill("compression.ipynb", tmp_path, **TOY)  # the same config: nothing is trained
    assert again.returncode == 0 and (tmp_path / "compression" / "saaae.safetensors").stat().st_mtime_ns == weights
    assert rows(tmp_path / "compression.csv") == table


@pytest.mark.parametrize("wrong", [dict(widht=3), dict(budgets=[0]), dict(probe_bytes="many"), dict(gate="open")], ids=str)
def test_wrong_parameters_are_refused_by_name(tmp_path, wrong):
    done = papermill("compression.ipynb", tmp_path, **TOY | wrong)
    assert done.returncode != 0 and next(iter(wrong)) in done.stderr and not (tmp_path / "compression").exists()
