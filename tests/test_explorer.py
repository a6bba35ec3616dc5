"The explorer's controls without a browser: what they show is what plain torch makes of the shipped models."

import asyncio, io, re
from contextlib import redirect_stdout
from datetime import datetime, timezone

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from saaae.apps.codec import LAST_STEP
from saaae.apps.front import Pictures, load_image, samples
from saaae.lab.controls import configure
from saaae.lab.masks import KINDS
from saaae.runs.folder import train
from saaae.sources.photos64 import photos64
from saaae.tools import explorer as module
from saaae.tools.explorer import Explorer, Gate, Settling
from saaae.tools.pair import BUDGETS, PAINTED, ExploreError, Settings, explore, load_pair
from saaae.training import build_models

PAIR, PHOTOS, MODEL = load_pair(), photos64("test", 6), Pictures.load()
IMAGES, EMPTY = PHOTOS.pixels.movedim(1, 3).numpy(), np.zeros((64, 64), bool)
PANDA = load_image(samples()["panda"]).resize((128, 72))


@pytest.fixture
def gate():
    return Gate(PAIR, PHOTOS)


@pytest.fixture
def photograph():
    return Settling(MODEL, dict(panda=PANDA, grey=np.full((32, 48, 3), 128, np.uint8)))


def picture(widget):
    return np.asarray(Image.open(io.BytesIO(widget.value)))


def content(pixels, format="PNG", **options):
    Image.fromarray(pixels).save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def upload(panel, data, name="image.png"):
    now = datetime.now(timezone.utc)
    panel.upload.value = (dict(name=name, type="", size=len(data), content=memoryview(data), last_modified=now),)


def said(panel):
    "The sentence, as a person reads it."
    return re.sub("<.*?>", "", panel.message.value)


def numbers(panel):
    "The table as a person reads it: measure -> numbers."
    rows = re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", panel.figures.value)
    cell = lambda v: float("nan") if v == "-" else float(v.replace(",", ""))
    return {re.sub("<.*?>", "", name): [cell(v) for v in re.findall("<td>(.*?)</td>", r)] for name, r in rows if name}


def strokes(panel, *places):
    "Paint, in shares of the picture."
    h, w = panel.pad.mask.shape
    places = [(x * w * panel.pad.zoom, y * h * panel.pad.zoom) for x, y in places]
    panel.pad.press(*places[0])
    for place in places[1:]:
        panel.pad.drag(*place)
    panel.pad.release(*places[-1])


def greyed(panel):
    return {name for name, control in panel.controls.items() if control.disabled}


def state(panel):
    shown = [v for v in panel.__dict__.values() if isinstance(v, ipywidgets.Image)]
    shown += getattr(panel, "pictures", {}).values()
    return [w.value for w in (*panel.controls.values(), panel.figures, panel.message, panel.links, panel.strip, *shown)]


@pytest.mark.parametrize("kind", KINDS)
def test_figures_of_every_mask_are_those_of_plain_torch(kind):
    shown = explore(PAIR, IMAGES[0], Settings(kind, 3, "off", False, strip="prior"), EMPTY, IMAGES[1])
    x = torch.from_numpy(IMAGES[0].copy()).movedim(2, 0)[None] / 255
    seen = torch.from_numpy(shown.pictures["seen"].copy()).movedim(2, 0)[None] / 127.5 - 1
    mask = (shown.pictures["seen"] == 128).all(-1) & (IMAGES[0] != 128).any(-1)
    assert 0.01 < mask.mean() < 0.95
    for name, model in PAIR.items():
        with torch.no_grad():
            mu, logvar = model.encode(torch.where(torch.from_numpy(mask), 0, seen))
            error = ((model.decode(mu) + 1) / 2 - x).square().mean((0, 1)).numpy()
        bits = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum() / np.log(2)
        f = shown.figures[name]
        assert np.allclose([f["psnr"], f["rate"]], [-10 * np.log10(error.mean()), bits], rtol=1e-3)
        assert np.allclose([f["mse_hidden"], f["mse_seen"]], [error[mask].mean(), error[~mask].mean()], rtol=1e-2)


def test_the_gate_is_the_saaaes_alone(gate):
    pictures = []
    for kind in ("published", "constant", "shuffled", "off"):
        gate.controls["gate"].value = kind
        pictures.append((gate.pictures["vae"].value, gate.pictures["saaae"].value))
    assert len({vae for vae, _ in pictures}) == 1 and len({saaae for _, saaae in pictures}) == 4


def test_strips():
    show = lambda **s: explore(PAIR, IMAGES[0], Settings(sample=False, **s), EMPTY, IMAGES[1])
    same = lambda a, b: np.abs(a.astype(int) - b).max() <= 1  # up to the rounding of a batch
    own = show().pictures
    (traversal,), (way,) = (show(strip=strip).strip for strip in ("traversal", "interpolation"))
    assert same([*traversal.values()][3], own["saaae"]) and not same([*traversal.values()][6], own["saaae"])
    assert same([*way.values()][0], own["saaae"])
    (back,) = explore(PAIR, IMAGES[1], Settings(sample=False, strip="interpolation"), EMPTY, IMAGES[0]).strip
    assert same([*way.values()][6], [*back.values()][0])
    (prior,), (other,) = show(strip="prior").strip, show(strip="prior", seed=7).strip
    assert not any(np.array_equal(prior[k], other[k]) for k in prior)
    for name, row in zip(PAIR, show().strip):  # each is what the control named bits shows
        assert [*row] == [f"{name.upper()}, {b} bits" for b in BUDGETS]
        assert same(row[f"{name.upper()}, 60 bits"], show(rate_bits=60.0).pictures[name])


def test_a_budget_is_met_and_its_region_is_better(gate):
    c = gate.controls
    c["sample"].value, c["limited"].value, c["hide"].value = False, True, "nothing"
    assert np.allclose(numbers(gate)["rate, bits"], 60, rtol=1e-3)
    off = lambda: np.square(picture(gate.pictures["saaae"])[16:48, 16:48] - picture(gate.original)[16:48, 16:48] / 1.0)
    everywhere = off().mean()
    c["region"].value, c["contrast"].value = "middle", 32
    assert off().mean() < everywhere and np.allclose(numbers(gate)["rate, bits"], 60, rtol=1e-3)


def test_what_does_not_apply_is_greyed_out(gate, photograph):
    assert greyed(gate) == {"rate_bits", "region", "contrast", "rank", "other"}
    c = gate.controls
    c["limited"].value, c["strip"].value, c["tool"].value = True, "traversal", "rectangle"
    assert greyed(gate) == {"contrast", "other", "brush"} and gate.clear.disabled
    c["region"].value, c["sample"].value, c["strip"].value = "middle", False, "interpolation"
    assert greyed(gate) == {"rank", "brush", "seed"}
    c["hide"].value, c["region"].value = "nothing", "hidden"
    assert greyed(gate) == {"rank", "brush", "seed", "which", "contrast"}
    assert greyed(photograph) == {"contrast"} and photograph.clear.disabled
    strokes(photograph, (0.2, 0.2), (0.4, 0.4))
    photograph.controls["tool"].value = "rectangle"
    assert greyed(photograph) == {"brush"} and not photograph.clear.disabled


def test_controls_have_names_and_tooltips(gate, photograph):
    for panel in (gate, photograph):
        for control in panel.controls.values():
            tooltip, name = re.fullmatch(r"<span title='(.+)'>(\w+)</span>", control.description).groups()
            assert len(tooltip) > len(name) and control.description_allow_html
        assert all(button.tooltip for button in (panel.clear, panel.again, panel.upload))


@pytest.mark.parametrize("panel", ["gate", "photograph"])
def test_reset_brings_everything_back(panel, request):
    panel = request.getfixturevalue(panel)
    first = state(panel)
    for control in panel.controls.values():
        old = control.value
        if hasattr(control, "options"):
            control.index = len(control.options) - 1
        else:
            control.value = control.max if old != control.max else control.min
    strokes(panel, (0.2, 0.2), (0.6, 0.4))
    upload(panel, content(np.full((30, 40, 3), 99, np.uint8)))
    assert all(a != b for a, b in zip(state(panel)[: len(panel.controls)], first))
    panel.again.click()
    assert state(panel) == first and not panel.pad.mask.any()


def test_uploads(gate, photograph):
    rgba = np.zeros((30, 30, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    lying = np.zeros((64, 96, 3), np.uint8)
    lying[:, :48] = 255
    gate.controls["hide"].value = "nothing"
    for panel in (gate, photograph):
        upload(panel, content(rgba))
        assert (picture(panel.original) == (200, 0, 0)).all()
        upload(panel, content(lying, exif=exif), "lying.png")
        shown = picture(panel.original)
        assert (shown[: len(shown) // 2] == 255).all() and (shown[len(shown) // 2 :] == 0).all()
        assert panel.original.value == panel.pad.image.value
    assert picture(photograph.original).shape == (96, 64, 3) and photograph.controls["picture"].value == "lying.png"
    assert gate.controls["image"].value == gate.controls["image"].max == 7


@pytest.mark.parametrize(
    "data, sentence", [(b"no image", "cannot be read"), (content(np.zeros((7000, 7000), np.uint8)), "40 million")]
)
def test_a_bad_upload_is_one_sentence(gate, photograph, data, sentence):
    for panel in (gate, photograph):
        before = state(panel)
        upload(panel, data)
        assert sentence in said(panel) and "Traceback" not in said(panel)
        changed = [a != b for a, b in zip(state(panel), before)]
        assert sum(changed) == 1  # the sentence
        panel.controls["seed" if panel is gate else "budget"].value = 7 if panel is gate else 900
        assert not said(panel)


def test_a_painted_mask_hides(gate):
    gate.controls["hide"].value = PAINTED
    assert "paint" in said(gate) and np.array_equal(picture(gate.pad.image), picture(gate.original))
    strokes(gate, (0.5, 0.5), (0.75, 0.5))
    seen = picture(gate.pad.image)
    assert not said(gate) and (seen[30:34, 32:48] == 128).all()
    assert np.array_equal(seen[:24], picture(gate.original)[:24])
    gate.controls["hide"].value = "patches"
    assert "saaae-unused" in gate.pad.canvas._dom_classes  # what does not hide is not seen
    strokes(gate, (0.1, 0.1), (0.1, 0.1))
    assert gate.controls["hide"].value == PAINTED and "saaae-unused" not in gate.pad.canvas._dom_classes
    gate.clear.click()
    assert "paint" in said(gate) and gate.clear.disabled


def test_a_rectangle_replaces_what_was_painted(gate):
    strokes(gate, (0.1, 0.1), (0.1, 0.1))
    gate.controls["tool"].value = "rectangle"
    strokes(gate, (0.75, 0.5), (0.25, 1.2))
    rows, columns = gate.pad.mask.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 63, 16, 47) and len(rows) == 32 * 32


def test_a_photograph_is_what_its_stream_decodes_to(photograph):
    for budget in (400, 1500):
        photograph.controls["budget"].value = budget
        decoded = np.asarray(MODEL.decode(photograph.stream))
        assert len(photograph.stream) <= budget and np.array_equal(picture(photograph.rebuilt), decoded)
        size, psnr = (numbers(photograph)[name][0] for name in ("size, bytes", "PSNR, dB"))
        error = np.square(np.asarray(PANDA, float) - decoded).mean()
        assert size == len(photograph.stream) and np.isclose(psnr, 10 * np.log10(255**2 / error), atol=0.01)
    assert photograph.links.value.count("download='saaae.") == 2


def test_what_is_painted_becomes_precise(photograph):
    photograph.controls["budget"].value, photograph.controls["contrast"].value = 700, 4
    before = picture(photograph.rebuilt)
    photograph.controls["tool"].value = "rectangle"
    strokes(photograph, (0.4, 0.2), (0.8, 0.8))
    after, middle = picture(photograph.rebuilt), (slice(16, 56), slice(52, 102))
    off = lambda x: np.square(x[middle] - np.asarray(PANDA, float)[middle]).mean()
    assert len(photograph.stream) <= 700 and off(after) < 0.8 * off(before)
    f = {name: v[0] for name, v in numbers(photograph).items()}
    assert f["PSNR painted, dB"] > f["PSNR, dB"] > f["PSNR elsewhere, dB"]


def test_a_budget_below_the_shortest_stream(photograph):
    budget = photograph.controls["budget"]
    budget.min = 1
    budget.value = 20
    stream = MODEL.codec.encode(PANDA, step=LAST_STEP)
    assert photograph.stream == stream and f"at least {len(stream)} bytes" in said(photograph)
    budget.value = 900
    assert not said(photograph)


def test_while_something_moves_no_stream_is_made(photograph, monkeypatch):
    monkeypatch.setattr(photograph, "soon", lambda work: None)
    before, stream = picture(photograph.rebuilt), photograph.stream
    photograph.controls["budget"].value = 300
    assert photograph.stream is stream and not np.array_equal(picture(photograph.rebuilt), before)
    assert "href" not in photograph.links.value  # nothing to download that is not shown
    assert "saaae-old" in photograph.figures._dom_classes and "saaae-old" not in photograph.strip._dom_classes
    asyncio.run(photograph.settle())
    assert "href" in photograph.links.value and "saaae-old" not in photograph.figures._dom_classes


def test_only_the_last_of_many_changes_is_settled(photograph, monkeypatch):
    monkeypatch.setattr(module, "STILL", 0.05)
    settled = []
    send = photograph.send
    monkeypatch.setattr(photograph, "send", lambda whole, b, *rest: settled.append(b) or send(whole, b, *rest))

    async def drag():
        for budget in (500, 600, 700):
            photograph.controls["budget"].value = budget
        await photograph.task

    asyncio.run(drag())
    assert settled == [700] and len(photograph.stream) <= 700


def test_other_sizes_and_models_that_must_be_told_are_refused(tmp_path):
    with pytest.raises(ExploreError, match="64x64: give some, not 2 of 32x32"):
        Gate(PAIR, photos64("test", 2, 32))
    images = photos64("train", 8, 16)
    for name, given in dict(classes=dict(classes=7), cond=dict(multirate="conditioned", t_range=4)).items():
        cfg = configure(
            "small", image_size=16, patch_size=4, width=2, latent=4, epochs=1, attention="patch", device="cpu", **given
        )
        with redirect_stdout(io.StringIO()):
            train(build_models(cfg), images, cfg, tmp_path / name)
        with pytest.raises(ExploreError, match="must be told more than the image"):
            load_pair(tmp_path / name)


def test_an_unknown_pair_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("saaae.runs.pretrained.hf_hub_download", lambda *a, **k: pytest.fail("The Hub was asked."))
    for name in ("photos65", "./runs/none", "no/such/run"):
        with pytest.raises(ExploreError, match="neither"):
            load_pair(name)


def test_both_models_in_one_view(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "samples", lambda: dict(panda=PANDA))
    view = Explorer(images=3).view
    assert view.children[1].titles == ("Photograph, any size", "Gate, 64x64") and not [*tmp_path.iterdir()]
