"""The models for pictures, as they ship: any picture there and back in other processes, damaged streams, budgets, and
whether what comes out is better than the cheapest thing."""

import io, os, subprocess, sys, zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from saaae import SAAAE, VAE, load_image
from saaae.apps.codec import SUFFIX
from saaae.apps.pictures import PictureError
from saaae.apps.restorer import harmonic_fill
from saaae.data import DataError
from saaae.tools.cli import main

PHOTOS = sorted((ROOT / "data" / "photos64" / "photographs").glob("*.webp"))
PORTABLE = dict(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41", MKL_ENABLE_INSTRUCTIONS="SSE4_2")


@pytest.fixture(scope="module")
def model():
    return SAAAE.from_pretrained("pictures")


@pytest.fixture(scope="module")
def photo():
    "A photograph that was not trained on."
    import csv

    rows = csv.DictReader(open(ROOT / "data" / "photos64" / "photographs.csv"))
    names = [r["file"] for r in rows if r["split"] == "test" and int(r["width"]) > 190]
    return load_image(PHOTOS[0].parent / names[3])


def psnr(a, b, where=...):
    "PSNR of two pictures, dB, inside a mask."
    return 10 * np.log10(255**2 / np.square(np.asarray(a, float) - np.asarray(b, float))[where].mean())


def command(*given, **env):
    "The command in a process of its own."
    line = [sys.executable, "-m", "saaae", *map(str, given)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=os.environ | env)


def typed(*given):
    "The command in this process: its exit code."
    try:
        return main([*map(str, given)])
    except SystemExit as e:
        return e.code


def pictures(folder, photo):
    "Pictures of every kind, by name; returns their sizes as a viewer shows them."
    pixels = np.asarray(photo)
    (folder / "deep").mkdir(parents=True)
    save = lambda name, p, **more: Image.fromarray(p).save(folder / name, **more)
    save("a.png", pixels), save("b.jpg", pixels[:50]), save("grey.png", pixels[..., 0])
    save("rgba.png", np.dstack([pixels, pixels[..., 0]])), save("deep.png", pixels[..., 0].astype(np.uint16) * 257)
    save("deep/one.png", pixels[:1, :1]), save("tiny.png", pixels[:3, :5]), save("thin.png", pixels[:1])
    turned = Image.Exif()
    turned[0x0112] = 6
    save("turned.jpg", pixels[:30], exif=turned)
    whole = photo.size
    return {"a": whole, "b": (whole[0], 50), "grey": whole, "rgba": whole, "deep": whole, "deep/one": (1, 1),
            "tiny": (5, 3), "thin": (whole[0], 1), "turned": (30, whole[0])}


def test_any_picture_there_and_back_on_other_machines(tmp_path, photo):
    "Other threads and other instruction sets read the same numbers: pixels differ by one level at most."
    sizes = pictures(tmp_path / "in", photo)
    done = command("encode", tmp_path / "in", "--out", tmp_path / "bytes", OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    found = {p.relative_to(tmp_path / "bytes").as_posix() for p in (tmp_path / "bytes").rglob("*" + SUFFIX)}
    assert found == {f"{n}{SUFFIX}" for n in sizes}
    for name, env in (("one", dict(OMP_NUM_THREADS="1")), ("other", dict(OMP_NUM_THREADS="2") | PORTABLE)):
        done = command("decode", tmp_path / "bytes", "--out", tmp_path / name, **env)
        assert done.returncode == 0, done.stderr
    for name, size in sizes.items():
        one, other = (Image.open(tmp_path / n / f"{name}.png") for n in ("one", "other"))
        assert (one.size, one.mode) == (size, "RGB"), name
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1, name
    assert psnr(Image.open(tmp_path / "other" / "a.png"), photo) > 24


def test_a_budget_is_kept_used_and_better_spent_than_by_jpeg(model, photo):
    for quality in (8, 20, 50):
        photo.save(content := io.BytesIO(), "JPEG", quality=quality, optimize=True, progressive=True)
        budget = content.tell()
        ours = model.rebuild(photo, bytes=budget)
        assert .9 * budget < ours.bytes <= budget or ours.psnr > 36
        assert ours.psnr > psnr(Image.open(io.BytesIO(content.getvalue())), photo) + 1
    assert len(model.encode(photo, bits=8 * 900)) <= 900
    assert len(model.encode(photo, bpp=.5)) <= .5 * photo.width * photo.height / 8


def test_precision_where_the_mask_is_bright_at_equal_bytes(model, photo):
    keep = np.zeros((photo.height, photo.width))
    keep[photo.height // 4 : photo.height * 3 // 4, photo.width // 4 : photo.width * 3 // 4] = 1
    flat, kept = model.rebuild(photo, bytes=1500), model.rebuild(photo, bytes=1500, keep=keep, contrast=2)
    assert kept.bytes <= 1500
    assert psnr(kept, photo, keep > 0) > psnr(flat, photo, keep > 0) + 1.5
    assert psnr(kept, photo, keep == 0) < psnr(flat, photo, keep == 0)


def test_the_map_of_importance_is_a_mask_for_any_size(model, photo):
    for size in ((1, 1), (300, 7), photo.size):
        where = model.importance_map(photo.resize(size))
        assert (where.size, where.mode) == (size, "L")
        assert model.rebuild(photo.resize(size), bytes=3000, keep=where).bytes <= 3000
    assert np.asarray(where).std() > 5, "it is not the same everywhere"


def test_damaged_foreign_and_truncated_streams_are_refused(model, photo):
    stream, rng = model.encode(photo.crop((0, 0, 40, 40)), bytes=300), np.random.RandomState(0)
    for n in rng.randint(0, len(stream), 40):
        with pytest.raises(PictureError):
            model.decode(stream[:n])
    for n in rng.randint(0, 8 * len(stream), 40):
        with pytest.raises(PictureError):
            model.decode((int.from_bytes(stream) ^ 1 << int(n)).to_bytes(len(stream)))
    with pytest.raises(PictureError, match="not a .saz"):
        model.decode(b"\xff\xd8\xff\xe0 a JPEG")
    body = stream[:3] + b"abc" + stream[6:-4]
    with pytest.raises(PictureError, match="another model"):
        model.decode(body + zlib.crc32(body).to_bytes(4))
    for _ in range(20):  # whose checksum fits: any picture, or a sentence
        body = stream[:10] + rng.bytes(rng.randint(0, 60))
        try:
            model.decode(body + zlib.crc32(body).to_bytes(4))
        except PictureError:
            pass


def test_holes_are_filled_better_than_smoothly_and_what_is_known_stays(model, photo):
    hole = np.zeros((photo.height, photo.width))
    for y in range(10, photo.height - 12, 24):
        hole[y : y + 10, 8::24] = hole[y : y + 10, 9::24] = hole[y : y + 10, 10::24] = hole[y : y + 10, 11::24] = 1
    filled = model.inpaint(photo, hole)
    assert (np.asarray(filled)[hole == 0] == np.asarray(photo)[hole == 0]).all()
    x = torch.from_numpy(np.array(photo)).movedim(2, 0)[None] / 127.5 - 1
    smooth = (harmonic_fill(x, torch.from_numpy(1 - hole).float()[None, None])[0].movedim(0, 2).numpy() + 1) * 127.5
    assert psnr(filled, photo, hole > 0) > psnr(smooth, photo, hole > 0)
    modes, samples = [], []
    for y, x in ((10, 10), (40, 70), (60, 120), (90, 20)):
        block = np.zeros_like(hole)
        block[y : y + 40, x : x + 40] = 1
        best, *drawn = (model.inpaint(photo, block, sample=n) for n in (None, 1, 2))
        assert (np.asarray(drawn[0]) != np.asarray(drawn[1])).any()
        modes.append(psnr(best, photo, block > 0))
        samples.append(np.mean([psnr(d, photo, block > 0) for d in drawn]))
    assert np.mean(samples) < np.mean(modes), "the mode is the best guess, on the whole"
    for wrong in (np.ones((photo.height, photo.width)), np.zeros((7, 90)), 2 * hole - 1):
        with pytest.raises(PictureError):
            model.inpaint(photo, wrong)


def test_noise_is_taken_away_whether_its_level_is_told_or_not(model, photo):
    rng = np.random.RandomState(0)
    for sigma, least in ((.05, 2), (.2, 6)):
        noisy = (np.asarray(photo) / 255 + sigma * rng.randn(photo.height, photo.width, 3)).clip(0, 1)
        before = psnr(255 * noisy, photo)
        assert psnr(model.denoise(noisy, sigma), photo) > before + least
        assert psnr(model.denoise(noisy), photo) > before + least / 2
    with pytest.raises(PictureError, match="sigma"):
        model.denoise(photo, 20)


def test_salt_and_pepper_is_found_and_filled(model, photo):
    from scipy.ndimage import median_filter

    u, spoilt = np.random.RandomState(0).rand(photo.height, photo.width), np.array(photo)
    spoilt[u < 0.1], spoilt[u < 0.05] = 255, 0
    clean = model.denoise(spoilt, impulses=True)
    assert psnr(clean, photo) > psnr(median_filter(spoilt, (3, 3, 1)), photo) + 3
    untouched = model.denoise(photo, impulses=True)
    assert (np.asarray(untouched) != np.asarray(photo)).mean() < 0.01


def test_commands_leave_what_they_say(tmp_path, photo, capsys):
    photo.save(tmp_path / "p.png")
    Image.new("L", photo.size).save(tmp_path / "m.png")
    mask = Image.new("L", photo.size)
    mask.paste(255, (20, 20, 60, 50))
    mask.save(tmp_path / "m.png")
    assert typed("encode", tmp_path / "p.png", "--bytes", 1200, "--keep", tmp_path / "m.png") == 0
    assert (tmp_path / "p.saz").stat().st_size <= 1200
    assert typed("decode", tmp_path / "p.saz") == 1 and "already" in capsys.readouterr().err
    assert typed("decode", tmp_path / "p.saz", "--force") == 0
    assert Image.open(tmp_path / "p.png").size == photo.size
    assert typed("rebuild", tmp_path / "p.png", "--bpp", 1, "--side-by-side") == 0
    assert Image.open(tmp_path / "p_rebuilt.png").size == (2 * photo.width, photo.height)
    assert typed("inpaint", tmp_path / "p.png", "--mask", tmp_path / "m.png") == 0
    assert typed("denoise", tmp_path / "p.png", "--out", tmp_path / "clean.png") == 0
    assert typed("denoise", tmp_path / "p.png", "--impulses", "--out", tmp_path / "specks.png") == 0
    assert typed("encode", tmp_path / "p.png", "--bpp", 0.5, "--keep", "auto", "--out", tmp_path / "auto.saz") == 0
    assert (tmp_path / "auto.saz").read_bytes()[7] == 4, "a map of contrast 1 is in the stream"
    assert {p.name for p in tmp_path.iterdir()} == {
        "p.png", "m.png", "p.saz", "p_rebuilt.png", "p_inpainted.png", "clean.png", "specks.png", "auto.saz"
    }
    capsys.readouterr()
    (tmp_path / "p.saz").write_bytes(b"SA\x02")
    for line, says in (
        (("encode", tmp_path / "p.png", "--bytes", 3, "--force"), "too few"),
        (("encode", tmp_path / "p.png", "--bytes", -3, "--force"), "above 0"),
        (("decode", tmp_path / "p.saz", "--force"), "damaged or truncated"),
        (("encode", tmp_path / "p.png", "--keep", tmp_path / "no.png", "--force"), "no.png"),
    ):
        assert typed(*line) == 1
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1, said


def test_what_cannot_be_read_in_a_folder_is_named_and_the_rest_goes_on(tmp_path, photo, capsys):
    (tmp_path / "in").mkdir()
    photo.crop((0, 0, 32, 32)).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_text("no picture")
    assert typed("denoise", tmp_path / "in", "--out", tmp_path / "out") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a_denoised.png"]
    assert "b.png" in capsys.readouterr().err


def test_what_cannot_be_done_is_said_in_one_sentence_that_names_the_file(tmp_path, photo, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo.crop((0, 0, 32, 32)).save("p.png")
    photo.crop((0, 0, 9, 9)).save("tiny.png")
    Path("file").write_text("no folder")
    Path("s.saz").write_text("no stream")
    for line, says in (
        (("rebuild", "p.png", "--out", "p.jpg"), "--out must be a folder or end in .png, not p.jpg."),
        (("encode", "p.png", "--out", "p.jpg"), "--out must be a folder or end in .saz, not p.jpg."),
        (("rebuild", "p.png", "--keep", "no.png"), "p.png: the mask no.png is neither a file nor a folder."),
        (("encode", "p.png", "--bytes", 3), "p.png: 3 bytes are too few: the header alone takes "),
        (("decode", "s.saz"), "s.saz: this is not a .saz stream"),
        (("encode", "p.png", "--out", "file/p.saz"), "file/p.saz cannot be written: "),
        (("demo", "no.png"), "no.png cannot be read as an image: No such file or directory"),
        (("demo", "tiny.png"), "tiny.png is too small"),
        (("demo", "--out", "demo.jpg"), "--out must end in .png, not demo.jpg."),
    ):
        assert typed(*line) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"saaae: {says}") and said.count("\n") == 1, said
    assert typed("inpaint", "p.png", "--mask", "p.png", "--sample", 10**30) == 2
    assert typed("encode", "p.png", "--out", "new") == 0 and Path("new/p.saz").is_file()
    photo.crop((0, 0, 40, 32)).save("r.png")
    assert typed("encode", "p.png", "r.png") == 0 and Path("p.saz").is_file() and Path("r.saz").is_file()
    Path("new/q.saz").write_text("no stream")
    assert typed("decode", "new", "--out", "back") == 1 and Path("back/p.png").is_file()
    assert "skipped: new/q.saz: this is not" in capsys.readouterr().err


def test_a_mask_is_found_by_any_name_and_a_large_picture_is_announced(tmp_path, photo, capsys, monkeypatch):
    from saaae.tools import picture_commands

    for folder in ("in", "masks"):
        (tmp_path / folder).mkdir()
        photo.crop((0, 0, 32, 32)).save(tmp_path / folder / "p[1].x.png")
    monkeypatch.setattr(picture_commands, "_LARGE", 1000)
    assert typed("inpaint", tmp_path / "in", "--mask", tmp_path / "masks", "--out", tmp_path / "out") == 0
    assert "has 32x32 pixels: this takes a while" in capsys.readouterr().err


def test_models_for_pictures_are_named_when_they_are_not_there(tmp_path):
    from saaae.apps.front import Pictures

    with pytest.raises(DataError, match="no models for pictures"):
        Pictures.load(tmp_path)
    with pytest.raises(ValueError, match="pictures"):
        VAE.from_pretrained("pictures")
    with pytest.raises(TypeError, match="device is no argument"):
        SAAAE.from_pretrained("pictures", device="cuda")
    assert sum(p.stat().st_size for p in (ROOT / "saaae" / "pretrained").rglob("*") if p.is_file()) <= 12e6
