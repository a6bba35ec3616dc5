"""A real browser on the explorer: what a person sees, moves, paints and downloads, at two sizes of window."""

import io, os, shutil, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saaae.apps.front import Pictures

ROOT = Path(__file__).parent.parent
SIZES = ((1440, 900), (1280, 720))
TABS = {"Photograph, any size": ("photograph",), "Gate, 64x64": ("image", "gate and rate", "strip")}


@contextmanager
def serve(away):
    "The address of JupyterLab on a copy of the explorer, and the copy's folder: what `make explore` opens."
    folder = away / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "nbs/tools/explore.ipynb", folder)
    settings = away / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false"}')  # it would ask, in front of the controls
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | dict(
        PYTHONPATH=str(ROOT),
        JUPYTERLAB_SETTINGS_DIR=str(away / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(away / "workspaces"),
    )
    options = ["--allow-root", "--no-browser", f"--port={port}", f"--ServerApp.root_dir={folder}"]
    options += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--LabApp.news_url=None"]
    with (away / "lab.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(address + "/api").close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((away / "lab.log").read_text()[-2000:])
        yield address + "/lab/tree/explore.ipynb", folder
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("lab")) as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium():
    place = shutil.which("chromium") or shutil.which("chromium-browser")
    assert place, "The browser test needs Chromium: apt-get install chromium."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(chromium, address, size):
    "The notebook in a window, its kernel ready."
    page = chromium.new_page(viewport=dict(zip(("width", "height"), size)))
    page.set_default_timeout(120_000)
    page.goto(address)
    idle = page.locator("#jp-main-statusbar").get_by_text("| Idle")
    idle.wait_for()  # sooner, Run All Cells only asks for a kernel
    return page


def run_all(page):
    "Run All Cells, until everything is there."
    page.locator(".lm-MenuBar").get_by_text("Run", exact=True).click()
    page.locator(".lm-Menu").get_by_text("Run All Cells", exact=True).click()
    page.locator(".saaae-photo .saaae-strip figure").first.wait_for()
    until(page, lambda: in_sight(page, page.locator(".saaae-explorer")), "all of the view")


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: "x".join(map(str, size)))
def page(lab, chromium, request):
    "The notebook after Run All Cells."
    page = opened(chromium, lab[0], request.param)
    run_all(page)
    yield page
    page.close()


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()
    page.wait_for_timeout(400)


def shown(page, selector):
    return [e for e in page.locator(selector).all() if e.is_visible()]


def in_sight(page, element):
    "Is all of an element in the part of the notebook that is seen?"
    box, view = element.bounding_box(), page.locator(".jp-WindowedPanel-outer").first.bounding_box()
    return all(
        view[at] - 1 <= box[at] and box[at] + box[size] <= view[at] + view[size] + 1
        for at, size in (("x", "width"), ("y", "height"))
    )


def picture(page, caption):
    "The uppermost picture under a caption that begins so."
    cells = page.locator(".saaae-cell:visible")
    return cells.filter(has=page.locator(f"span:text-matches('^{caption}')")).locator("img").last


def pixels(image):
    "A picture as the browser has it."
    content = image.evaluate("async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))")
    return np.asarray(Image.open(io.BytesIO(bytes(content))).convert("RGB")).astype(int)


def control(page, name):
    return page.locator(".saaae-side .widget-inline-hbox:visible").filter(
        has=page.locator(f".widget-label span:text-is('{name}')")
    )


def figure(page, name, column=1):
    return page.locator(".saaae-figures:visible tr").filter(has_text=name).locator("td").nth(column).inner_text()


def until(page, true, what):
    for _ in range(300):
        if true():
            return
        page.wait_for_timeout(100)
    pytest.fail(f"Not within half a minute: {what}.")


def settled(page):
    until(page, lambda: page.locator(".saaae-links:visible a[href]").count(), "the download")


def move(page, start, *places):
    "Press the mouse and go on; what there is at every stop."
    page.mouse.move(*start)
    page.mouse.down()
    for place in places:
        page.mouse.move(*place, steps=4)
        page.wait_for_timeout(300)
        yield
    page.mouse.up()


def across(element, *shares):
    "Places in an element."
    box = element.bounding_box()
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in shares]


def keep_shot(page, name):
    "A small screenshot, if EXPLORER_SHOTS=FOLDER is in the environment; results/explore/painted-1280.png is one."
    if place := os.environ.get("EXPLORER_SHOTS"):
        shot = Image.open(io.BytesIO(page.locator(".saaae-explorer").screenshot())).convert("RGB")
        width = page.viewport_size["width"]
        small = shot.quantize(palette=shot.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
        small.save(Path(place) / f"{name.replace(' ', '-')}-{width}.png", optimize=True)


@pytest.mark.slow
def test_all_is_in_sight_and_explained(page):
    for tab, inner in TABS.items():
        open_tab(page, tab)
        for name in inner:
            if len(inner) > 1:
                open_tab(page, name)
            pictures = shown(page, ".saaae-pictures img, .saaae-pictures canvas")
            controls = shown(page, ".saaae-side :is(select, button, .noUi-target, .saaae-figures td)")
            assert len(pictures) >= 10 and len(controls) >= 8
            assert all(in_sight(page, e) for e in (*pictures, *controls)), (tab, name)
            assert min(e.bounding_box()["width"] for e in shown(page, ".saaae-stack > img")) >= 130
            named = shown(page, ".saaae-side :is(.widget-label > span, button, .saaae-figures td span)")
            assert len(named) >= 8 and not [e.inner_text() for e in named if not e.get_attribute("title")]
            keep_shot(page, name)


@pytest.mark.slow
def test_a_photograph_by_hand(page):
    open_tab(page, "Photograph, any size")
    settled(page)
    rebuilt, places = picture(page, "rebuilt"), [e.bounding_box() for e in shown(page, ".saaae-stack > *")]
    first, size = pixels(rebuilt), figure(page, "size, bytes")
    handle = control(page, "bytes").locator(".noUi-handle")
    src, ((x, y),) = rebuilt.get_attribute("src"), across(handle, (0.5, 0.5))
    for _ in move(page, (x, y), (x - 5, y), (x - 10, y), (x - 15, y)):  # the mouse button is still down
        until(page, lambda: rebuilt.get_attribute("src") != src, "another picture")
        src = rebuilt.get_attribute("src")
    settled(page)
    budget = int(control(page, "bytes").locator(".widget-readout").inner_text().replace(",", ""))
    assert int(figure(page, "size, bytes").replace(",", "")) <= budget < int(size.replace(",", ""))

    handle = control(page, "contrast").locator(".noUi-target")
    assert handle.get_attribute("disabled") and figure(page, "PSNR painted") == "-"
    before, canvas = pixels(rebuilt), page.locator(".saaae-cell:visible canvas")
    strip = page.locator(".saaae-photo figure img").last
    src = strip.get_attribute("src")
    for _ in move(page, *across(canvas, (0.45, 0.4), (0.5, 0.6))):
        pass
    until(page, lambda: handle.get_attribute("disabled") is None, "a contrast that applies")
    until(page, lambda: strip.get_attribute("src") != src, "another strip, which comes last")
    after = pixels(rebuilt)
    h, w = after.shape[:2]
    middle = (slice(h * 4 // 10, h * 6 // 10), slice(w * 44 // 100, w * 52 // 100))
    off = lambda x: np.square(x - pixels(picture(page, "original"))[: x.shape[0]])[middle].mean()
    assert before.shape == after.shape and off(after) < off(before)
    assert float(figure(page, "PSNR painted")) > float(figure(page, "PSNR elsewhere"))
    keep_shot(page, "painted")

    (spot,) = across(rebuilt, (0.5, 0.5))
    for _ in move(page, spot, spot):
        assert rebuilt.evaluate("e => getComputedStyle(e).visibility") == "hidden"  # the original is under it
    assert rebuilt.evaluate("e => getComputedStyle(e).visibility") == "visible"

    files = {}
    for ending in (".saz", ".png"):
        with page.expect_download() as download:
            page.locator(".saaae-links:visible a", has_text=ending).click()
        assert download.value.suggested_filename == f"saaae{ending}"
        files[ending] = Path(download.value.path()).read_bytes()
    assert len(files[".saz"]) <= budget
    assert np.array_equal(Pictures.load().decode(files[".saz"]), Image.open(io.BytesIO(files[".png"])))

    page.get_by_role("button", name="reset").click()
    until(page, lambda: np.array_equal(pixels(rebuilt), first), "the first picture again")
    assert figure(page, "size, bytes") == size
    assert [e.bounding_box() for e in shown(page, ".saaae-stack > *")] == places  # nothing has moved


@pytest.mark.slow
def test_the_pair_by_hand(page, tmp_path):
    open_tab(page, "Gate, 64x64")
    open_tab(page, "image")
    seen, saaae, canvas = picture(page, "seen"), picture(page, "SAAAE"), page.locator(".saaae-cell:visible canvas")
    places = [e.bounding_box() for e in shown(page, ".saaae-stack > *")]
    first = pixels(seen), pixels(saaae)
    changed = lambda src, what: until(page, lambda: saaae.get_attribute("src") != src, what)

    src, handle = saaae.get_attribute("src"), control(page, "mask").locator(".noUi-handle")
    handle.focus()
    handle.press("ArrowRight")
    changed(src, "another mask")
    assert not np.array_equal(pixels(seen), first[0])

    for _ in move(page, *across(canvas, (0.3, 0.5), (0.7, 0.5))):
        pass
    until(page, lambda: control(page, "hide").locator("select").input_value() == "painted", "painted")
    assert control(page, "mask").locator(".noUi-target").get_attribute("disabled")
    until(page, lambda: (pixels(seen)[30:34, 22:42] == 128).all(), "the stroke is hidden from the models")
    assert not (pixels(seen)[:20] == 128).all(-1).any()  # and nothing else is

    src = saaae.get_attribute("src")
    Image.new("RGB", (90, 50), (250, 10, 30)).save(tmp_path / "red.png")
    with page.expect_file_chooser() as chooser:
        page.locator(".saaae-side button:visible", has_text="Upload").click()
    chooser.value.set_files(tmp_path / "red.png")
    changed(src, "the upload")
    assert (pixels(seen) == (250, 10, 30)).all()

    open_tab(page, "gate and rate")
    bits = control(page, "bits").locator(".noUi-target")
    assert bits.get_attribute("disabled")
    control(page, "rate").locator("select").select_option("budget")
    until(page, lambda: figure(page, "rate, bits", 2) == "60", "60 bits")
    assert bits.get_attribute("disabled") is None

    page.get_by_role("button", name="reset").locator("visible=true").click()
    until(page, lambda: np.array_equal(pixels(saaae), first[1]), "the first pictures again")
    assert [e.bounding_box() for e in shown(page, ".saaae-stack > *")] == places


@pytest.mark.slow
def test_nothing_is_written(page, lab):
    "The notebook of the repository stays as it is: `make explore` opens a copy."
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1000)
    assert {p.name for p in lab[1].iterdir()} <= {"explore.ipynb", ".ipynb_checkpoints"}
    recipe = subprocess.run(["make", "-n", "explore"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "cp nbs/tools/explore.ipynb" in recipe and "tree/nbs" not in recipe
