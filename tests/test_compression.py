"""Latent compression: streams in other processes, damaged ones, any image from the command line, and the notebook at
toy size."""

import io, json, math, os, random, subprocess, sys, zlib
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, papermill, rows
from PIL import Image

from saaae.apps.codec import MAX_SIDE, CodecError, fit_codec, load_codec, payload_bytes, read_codec
from saaae.sources.files import save_tensors
from saaae.sources.photos64 import photos64
from saaae.lab.controls import configure
from saaae.training import build_model
from saaae.runs.folder import save_weights

TOY = dict(epochs=1, width=2, train_images=40, test_images=8, probe_images=40, budgets=[16, 48, 384], device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder with a VAE and a SAAAE, untrained, whose codes carry something."
    folder = tmp_path_factory.mktemp("run")
    cfg = configure("small", width=2, latent=16, train_images=30, device="cpu", gate="precision", epochs=1)
    for name, gate in dict(vae="off", saaae="precision").items():
        model = build_model(configure(**asdict(cfg) | dict(gate=gate)))
        with torch.no_grad():
            model.to_mu.weight.mul_(300), model.to_logvar.bias.sub_(6)
        save_weights(model, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(config=asdict(cfg))))
    return folder


def command(*given, **env):
    "The command line in a process of its own."
    return subprocess.run(
        [sys.executable, "-m", "saaae.apps.codec", *map(str, given)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | env,
    )


def pictures(folder):
    "Images of every kind, by name; returns their sizes as a viewer shows them."
    photo = photos64("test", 4).pixels.permute(0, 2, 3, 1).numpy()
    (folder / "deep" / "er").mkdir(parents=True)
    save = lambda name, pixels, **more: Image.fromarray(pixels).save(folder / name, **more)
    save("a.png", photo[0]), save("a.jpg", photo[1])
    save("grey.png", photo[2][..., 0]), save("rgba.png", np.dstack([photo[2], photo[2][..., 0]]))
    save("deep.png", photo[0][..., 0].astype(np.uint16) * 257)
    (
        save("deep/er/wide.png", np.hstack(photo)[:20]),
        save("deep/one.png", photo[0][:1, :1]),
        save("tiny.png", photo[0][:3, :5]),
    )
    turned = Image.Exif()
    turned[0x0112] = 6
    save("turned.jpg", photo[0][:30], exif=turned)
    sizes = dict(zip(("a.png", "a.jpg", "grey.png", "rgba.png", "deep.png"), [(64, 64)] * 5))
    return sizes | {"deep/er/wide.png": (256, 20), "deep/one.png": (1, 1), "tiny.png": (5, 3), "turned.jpg": (30, 64)}


def test_any_image_there_and_back_in_other_processes(tmp_path, run):
    sizes = pictures(tmp_path / "in")
    done = command("encode", tmp_path / "in", tmp_path / "bytes", "--model", run, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert {str(p.relative_to(tmp_path / "bytes")) for p in (tmp_path / "bytes").rglob("*") if p.is_file()} == {
        f"{n}.saz" for n in sizes
    }
    for threads in ("1", "2"):
        done = command(
            "decode",
            tmp_path / "bytes",
            tmp_path / threads,
            "--model",
            run / "codec" / "saaae.safetensors",
            OMP_NUM_THREADS=threads,
        )
        assert done.returncode == 0, done.stderr
    for name, size in sizes.items():
        one, two = ((tmp_path / t / f"{name}.png").read_bytes() for t in "12")
        image = Image.open(io.BytesIO(one))
        assert one == two and (image.size, image.mode) == (size, "RGB"), name


def test_refused_files_are_named_and_the_rest_goes_on(tmp_path, run):
    pictures(tmp_path / "in")
    (tmp_path / "in" / "deep" / "notes.png").write_text("no image")
    (tmp_path / "in" / "raw.cr2").write_text("not read")
    (tmp_path / "in" / "half.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:900])
    done = command("encode", tmp_path / "in", tmp_path / "bytes", "--model", run, "--rate", "60")
    assert done.returncode == 1
    refused = [line for line in done.stderr.splitlines() if line.startswith("refused")]
    assert len(refused) == 2 and "deep/notes.png" in refused[0] + refused[1] and "half.png" in refused[0] + refused[1]
    assert "1 .cr2" in done.stderr
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
    assert (
        done.returncode == 1 and done.stderr.count("another model") == 9 and not list((tmp_path / "vae").rglob("*.png"))
    )


def test_what_cannot_begin_is_refused(tmp_path, run):
    (tmp_path / "empty").mkdir(), (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    for source, out, model, reason in (
        ("empty", "out", run, "holds no images"),
        ("nowhere", "out", run, "is not a folder"),
        ("in", "in", run, "other than IN_FOLDER"),
        ("in", "out", tmp_path / "nothing", "neither a codec file"),
        ("in", "out", tmp_path / "in" / "a.png", "no safetensors file"),
    ):
        done = command("encode", tmp_path / source, tmp_path / out, "--model", model)
        assert (
            done.returncode != 0
            and reason in done.stderr
            and "Traceback" not in done.stderr
            and not (tmp_path / "out").exists()
        ), done.stderr


def test_damage_is_always_refused(run):
    cfg = configure("small", width=2, latent=16, device="cpu", gate="precision", epochs=1)
    codec = fit_codec(build_model(cfg), cfg, photos64("train", 30))
    stream = codec.encode(Image.fromarray(photos64("test", 1).pixels[0].permute(1, 2, 0).numpy()))
    codec.decode(stream)
    rng = random.Random(0)
    damaged = [stream[:n] for n in range(len(stream))] + [stream + b"\0"]
    for _ in range(2000):
        bits = int.from_bytes(stream)
        for place in rng.sample(range(8 * len(stream)), rng.randint(1, 8)):
            bits ^= 1 << place
        damaged.append(bits.to_bytes(len(stream)))
    for data in damaged:
        with pytest.raises(CodecError):
            codec.decode(data)


@pytest.fixture(scope="module")
def codec(run):
    return load_codec(run)


def as_before(path, tensors, said):
    "A codec file from before there was a hash."
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in said.items()}
    safetensors.torch.save_file(tensors, path, text)


def test_codec_files_from_before_the_hash(codec, tmp_path):
    as_before(tmp_path / "a.safetensors", codec.tensors, dict(codec="1", config=asdict(codec.cfg)))
    image = Image.fromarray(photos64("test", 1).pixels[0].permute(1, 2, 0).numpy())
    again = load_codec(tmp_path / "a.safetensors")
    assert again.cfg == codec.cfg and again.encode(image) == codec.encode(image)


def test_every_flipped_bit_of_a_codec_file_is_refused(codec, tmp_path):
    codec.save(path := tmp_path / "a.safetensors")
    content = path.read_bytes()
    for at in [*range(8 + int.from_bytes(content[:8], "little")), *range(len(content) - 1, 5000, -len(content) // 50)]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(CodecError, match="a.safetensors"):
            read_codec(path)


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize(
    "said, message",
    [
        (dict(config="{"), "codec file"),
        (dict(config="[" * 200_000), "codec file"),
        (dict(config=[]), "not a codec file"),
        (dict(config=5), "not a codec file"),
        (dict(codec=2), "version 2"),
        (dict(image_size=1024, width=1024, latent=65536, attention="linear"), "is not what its config says"),
        (dict(classes=5), "told a class"),
        (dict(widht=3), "widht is not a parameter"),
        (dict(width="wide"), "width must be"),
        (dict(preset=[]), "refused"),
        (dict(floor=math.nan), "floor must be"),
    ],
    ids=lambda v: str(v)[:60],
)
def test_what_no_codec_says_is_refused_in_a_sentence(codec, said, message, hashed, tmp_path):
    path, good = tmp_path / "a.safetensors", dict(codec=1, config=asdict(codec.cfg))
    (save_tensors if hashed else as_before)(
        path, codec.tensors, good | said if said.keys() <= good.keys() else good | dict(config=good["config"] | said)
    )
    with pytest.raises(CodecError, match=message) as e:
        read_codec(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("model.to_mu.weight", lambda v: v * math.nan, "not finite"),
        ("centre", lambda v: v * math.nan, "not finite"),
        ("spread", lambda v: v * math.inf, "not finite"),
        ("spread", lambda v: -v, "above 0"),
        ("frequency", torch.zeros_like, "frequency must be"),
        ("frequency", lambda v: -v, "frequency must be"),
        ("frequency", lambda v: v[:, :3], "is not what"),
        ("frequency", lambda v: v[:2], "is not what"),
        ("frequency", lambda v: v.float(), "is not what"),
        ("centre", lambda v: v[:3], "is not what"),
        ("centre", lambda v: v.float(), "is not what"),
        ("model.to_mu.weight", lambda v: v.long(), "is not what"),
        ("model.to_mu.weight", lambda v: v.T, "is not what"),
        ("frequency", None, "is not what"),
        ("more", lambda v: torch.zeros(1), "is not what"),
    ],
)
@pytest.mark.parametrize("save", [as_before, save_tensors])
def test_other_tensors_than_a_codecs_are_refused_in_a_sentence(codec, name, change, message, save, tmp_path):
    path, tensors = tmp_path / "a.safetensors", dict(codec.tensors)
    old = tensors.pop(name, None)
    save(
        path,
        tensors if change is None else tensors | {name: change(old).contiguous()},
        dict(codec=1, config=asdict(codec.cfg)),
    )
    with pytest.raises(CodecError, match=message) as e:
        read_codec(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


def test_what_the_command_cannot_use_is_named_without_a_traceback(codec, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (MAX_SIDE + 1, 1)).save(tmp_path / "in" / "wide.png")
    codec.save(tmp_path / "a.safetensors")
    as_before(tmp_path / "b.safetensors", codec.tensors, dict(codec=1, config="{"))
    one, other = (
        command("encode", tmp_path / "in", tmp_path / out, "--model", tmp_path / f"{out}.safetensors") for out in "ab"
    )
    assert (
        one.returncode == 1
        and "1 of 2" in one.stdout
        and "refused wide.png: the image has 2097152x1 pixels" in one.stderr
    )
    assert (
        other.returncode == 1
        and "b.safetensors" in other.stderr
        and len(other.stderr.splitlines()) == 1
        and not (tmp_path / "b").exists()
    )


def test_toy(tmp_path):
    done = papermill("compression.ipynb", tmp_path, **TOY)
    assert done.returncode == 0, done.stderr[-3000:]
    table = rows(tmp_path / "compression.csv")
    assert list(table[0]) == ["method", "setting", "measure", "value", "n"]
    assert {r["method"] for r in table} >= {"vae", "saaae", "jpeg", "webp"} and {r["measure"] for r in table} >= {
        "psnr_db",
        "ssim",
        "payload_bytes",
    }
    assert all(math.isfinite(float(r["value"])) for r in table)
    get = {(r["method"], r["setting"], r["measure"]): float(r["value"]) for r in table}
    for method in ("jpeg", "webp"):
        assert get[method, "bytes 384, without headers", "psnr_db"] >= get.get((method, "bytes 384", "psnr_db"), 0)
    assert ("jpeg", "bytes 48", "psnr_db") not in get  # its tables alone are larger
    assert (tmp_path / "compression.png").stat().st_size > 20_000 and (
        tmp_path / "compression.md"
    ).read_text().startswith("| compression")
    weights = (tmp_path / "compression" / "saaae.safetensors").stat().st_mtime_ns
    Image.new("RGB", (70, 10), "orange").save(tmp_path / "a.png")
    (tmp_path / "in").mkdir(), (tmp_path / "a.png").rename(tmp_path / "in" / "a.png")
    assert command("encode", tmp_path / "in", tmp_path / "bytes", "--model", tmp_path / "compression").returncode == 0
    again = papermill("compression.ipynb", tmp_path, **TOY)  # the same config: nothing is trained
    assert again.returncode == 0 and (tmp_path / "compression" / "saaae.safetensors").stat().st_mtime_ns == weights
    assert rows(tmp_path / "compression.csv") == table


@pytest.mark.parametrize(
    "wrong", [dict(widht=3), dict(budgets=[0]), dict(probe_bytes="many"), dict(gate="open")], ids=str
)
def test_wrong_parameters_are_refused_by_name(tmp_path, wrong):
    done = papermill("compression.ipynb", tmp_path, **TOY | wrong)
    assert done.returncode != 0 and next(iter(wrong)) in done.stderr and not (tmp_path / "compression").exists()
