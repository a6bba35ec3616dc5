"The explorer's controls without a browser: what they show is what plain torch makes of the shipped models."

import io, json, re
from contextlib import redirect_stdout
from datetime import datetime, timezone

import numpy as np
import pytest
import torch
from PIL import Image

from saaae.sources.photos64 import photos64
from saaae.tools.explorer import PAINTED, ExploreError, Explorer, load_pair, reproduce
from saaae.lab.masks import KINDS
from saaae.lab.controls import configure
from saaae.training import build_models
from saaae.runs.folder import train

PAIR, PHOTOS = load_pair(), photos64("test", 6)


@pytest.fixture
def explorer(tmp_path):
    return Explorer(PAIR, PHOTOS, tmp_path)


def picture(explorer):
    return np.asarray(Image.open(io.BytesIO(explorer.picture.value)))


def part(explorer, i, row=0):
    "The i-th picture of a row, at its own size."
    top = 14 + row * (128 + 18)
    return picture(explorer)[top : top + 128 : 2, 132 * i : 132 * i + 128 : 2]


def same(a, b):
    "Up to the rounding of a batch."
    return np.abs(a.astype(int) - b).max() <= 1


def content(pixels, format="PNG", **options):
    Image.fromarray(pixels).save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def upload(explorer, data, name="image.png"):
    explorer.upload.value = (
        {
            "name": name,
            "type": "",
            "size": len(data),
            "content": memoryview(data),
            "last_modified": datetime.now(timezone.utc),
        },
    )


def shown_figures(explorer):
    "The table as a person reads it: model -> numbers."
    cells = re.findall(r"<td>(.*?)</td>", explorer.figures.value)
    return {
        cells[i]: [float("nan") if c == "-" else float(c) for c in cells[i + 1 : i + 6]]
        for i in range(0, len(cells), 6)
    }


@pytest.mark.parametrize("folder", ["", "~nosuchuser", "a" * 5000, "empty"])
def test_a_bad_choice_stays_said_until_there_is_an_image(explorer, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    before = explorer.picture.value
    explorer.folder.value = str(tmp_path / folder) if folder == "empty" else folder or " "
    said = explorer.message.value
    assert "is not a folder" in said
    explorer.controls["seed"].value = 7
    assert explorer.message.value == said and explorer.picture.value == before
    explorer.index.value = 2
    assert not explorer.message.value and explorer.picture.value != before


def test_other_sizes_and_models_that_must_be_told_are_refused(tmp_path):
    with pytest.raises(ExploreError, match="64x64: give some, not 2 of 32x32"):
        Explorer(PAIR, photos64("test", 2, 32), tmp_path)
    images = photos64("train", 8, 16)
    for name, given in dict(classes=dict(classes=7), cond=dict(multirate="conditioned", t_range=4)).items():
        cfg = configure(
            "small", image_size=16, patch_size=4, width=2, latent=4, epochs=1, attention="patch", device="cpu", **given
        )
        with redirect_stdout(io.StringIO()):
            train(build_models(cfg), images, cfg, tmp_path / name)
        with pytest.raises(ExploreError, match="must be told more than the image"):
            load_pair(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_figures_of_every_mask_are_those_of_plain_torch(explorer, kind):
    c = explorer.controls
    c["sample"].value, c["corruption"].value, c["gate"].value, c["which"].value = False, kind, "off", 3
    x = torch.from_numpy(part(explorer, 0).copy()).permute(2, 0, 1)[None] / 255
    mask = torch.from_numpy((part(explorer, 1) != part(explorer, 0)).any(-1))  # grey where it was not grey before
    assert 0.01 < mask.float().mean() < 0.95
    seen = torch.from_numpy(part(explorer, 1).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    for name, model in PAIR.items():
        with torch.no_grad():
            mu, logvar = model.encode(torch.where(seen.abs() < 0.005, 0, seen))
            error = ((model.decode(mu) + 1) / 2 - x).square().mean((0, 1))
        bits = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum() / np.log(2)
        inside, outside, psnr, _, rate = shown_figures(explorer)[name]
        assert np.allclose([psnr, rate], [-10 * error.mean().log10(), bits], rtol=5e-3)
        assert np.allclose(
            [inside, outside], [error[mask].mean(), error[~mask].mean()], rtol=3e-2
        )  # mid-grey pixels under the mask are not told apart


def test_noise_grows_with_its_level(explorer):
    explorer.take(np.full((64, 64, 3), 128, np.uint8))  # far from black and white, where noise is cut off
    explorer.controls["corruption"].value = "gaussian"
    far = []
    for level in (0.05, 0.15):
        explorer.controls["level"].value = level
        far.append((part(explorer, 1).astype(float) - part(explorer, 0)).std() / 255)
    assert np.allclose(far, (0.05, 0.15), rtol=0.05)


def test_the_gate_is_the_saaaes_alone(explorer):
    pictures = []
    for gate in ("published", "constant", "shuffled", "off"):
        explorer.controls["gate"].value = gate
        pictures.append((part(explorer, 2), part(explorer, 3)))
    assert all(np.array_equal(vae, pictures[0][0]) for vae, _ in pictures)
    assert len({saaae.tobytes() for _, saaae in pictures}) == 4


def test_strips(explorer):
    c = explorer.controls
    c["sample"].value = False
    assert same(part(explorer, 3, row=1), part(explorer, 3))  # the middle of the traversal is the code itself
    c["shift"].value = 3
    assert same(part(explorer, 6, row=1), part(explorer, 3))
    c["shift"].value, c["strip"].value, c["mix"].value = 0, "interpolation", 1
    end = part(explorer, 6, row=1)
    assert same(end, part(explorer, 3))
    c["mix"].value, explorer.index.value = 0, explorer.other.value
    assert same(part(explorer, 3), end)  # the far end is the other image's reconstruction
    c["strip"].value = "prior"
    prior = part(explorer, 0, row=1)
    explorer.index.value = 4
    assert np.array_equal(part(explorer, 0, row=1), prior)
    c["seed"].value = 7
    assert not np.array_equal(part(explorer, 0, row=1), prior)


def test_uploads_and_folder(explorer, tmp_path):
    upload(explorer, content(np.full((40, 90), 77, np.uint8)))
    assert (part(explorer, 0) == 77).all() and explorer.source.value == "upload"
    rgba = np.zeros((30, 30, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 255
    upload(explorer, content(rgba))
    assert (part(explorer, 0) == (200, 0, 0)).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    lying = np.zeros((64, 64, 3), np.uint8)
    lying[:, :32] = 255
    upload(explorer, content(lying, exif=exif))
    assert (part(explorer, 0)[:32] == 255).all() and (part(explorer, 0)[32:] == 0).all()
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (70, 70), (1, 2, 250)).save(tmp_path / "mine/a.png")
    explorer.folder.value = str(tmp_path / "mine")
    assert (part(explorer, 0) == (1, 2, 250)).all() and not explorer.message.value


@pytest.mark.parametrize(
    "data, sentence", [(b"no image", "cannot be read"), (content(np.zeros((7000, 7000), np.uint8)), "40 million")]
)
def test_a_bad_upload_is_one_sentence(explorer, data, sentence):
    before = explorer.picture.value
    upload(explorer, data)
    assert (
        sentence in explorer.message.value
        and "Traceback" not in explorer.message.value
        and explorer.picture.value == before
    )
    explorer.index.value = 2
    assert not explorer.message.value and explorer.picture.value != before


def test_a_painted_mask(explorer):
    explorer.controls["corruption"].value = PAINTED
    assert "empty" in explorer.message.value
    explorer.press(128, 128), explorer.drag(192, 128), explorer.release(192, 128)
    assert not explorer.message.value and (part(explorer, 1)[30:34, 32:48] == 128).all()
    assert np.array_equal(part(explorer, 1)[:24], part(explorer, 0)[:24])
    before = picture(explorer)
    explorer.wipe()
    assert "empty" in explorer.message.value and np.array_equal(picture(explorer), before)
    explorer.folder.value = "/no/such/folder"
    assert "is not a folder" in explorer.message.value


def test_save_and_reproduce(explorer, tmp_path):
    explorer.controls["seed"].value, explorer.controls["rank"].value = 5, 2
    explorer.keep.click()
    assert "Saved as" in explorer.message.value and "#b00" not in explorer.message.value  # no error
    (kept,) = tmp_path.glob("*.json")
    assert json.loads(kept.read_text())["settings"]["seed"] == 5
    image = np.asarray(Image.open(kept.with_suffix(".png")))
    assert np.array_equal(image, picture(explorer)) and np.array_equal(reproduce(kept, PAIR).picture, image)
    kept.write_text(kept.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(ExploreError, match="differently"):
        reproduce(kept, PAIR)


def test_an_unknown_pair_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("saaae.runs.pretrained.hf_hub_download", lambda *a, **k: pytest.fail("The Hub was asked."))
    for name in ("photos65", "./runs/none", "no/such/run"):
        with pytest.raises(ExploreError, match="neither"):
            load_pair(name)
