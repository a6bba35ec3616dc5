"""A real browser on the explorer: sliders, mouse and upload do what they do for a person."""

import io, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture
def lab(tmp_path):
    "The address of JupyterLab on a copy of the explorer."
    shutil.copy(ROOT / "nbs/tools/explore.ipynb", tmp_path)
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false"}')  # it would ask, in front of the controls
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = os.environ | dict(
        PYTHONPATH=str(ROOT),
        JUPYTERLAB_SETTINGS_DIR=str(tmp_path / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(tmp_path / "workspaces"),
    )
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--allow-root",
                "--no-browser",
                f"--port={port}",
                "--ServerApp.port_retries=0",
                "--IdentityProvider.token=",
                "--LabApp.news_url=None",
                f"--ServerApp.root_dir={tmp_path}",
            ],
            cwd=tmp_path,
            env=env,
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(address + "/api").close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "lab.log").read_text()[-2000:])
        yield address + "/lab/tree/explore.ipynb"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_a_person_explores(lab, tmp_path):
    """Run all, move, paint, upload. With EXPLORER_SHOT=results/explore/explorer.png in the environment the screenshot
    is kept there."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "The browser test needs Chromium: apt-get install chromium."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=dict(width=1400, height=1700))
        page.set_default_timeout(120_000)
        page.goto(lab)
        page.locator("#jp-main-statusbar").get_by_text(
            "| Idle"
        ).wait_for()  # sooner, Run All Cells only asks for a kernel
        page.locator(".lm-MenuBar").get_by_text("Run", exact=True).click()
        page.locator(".lm-Menu").get_by_text("Run All Cells", exact=True).click()
        for _ in range(600):  # the last cell saves; JupyterLab draws only the cells in sight
            if list(tmp_path.glob("explored-*.json")):
                break
            page.wait_for_timeout(500)
        else:
            pytest.fail("The last cell of the explorer did not save within five minutes.")
        page.wait_for_timeout(3000)  # what the cells moved has arrived
        view = page.locator(".jp-OutputArea-output:has(canvas)").first
        picture, figures, canvas = view.locator("img").first, view.locator("table").first, view.locator("canvas").first
        picture.scroll_into_view_if_needed()

        def pixels():
            "Of the picture, as the browser has them."
            content = page.evaluate(
                "async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))",
                picture.element_handle(),
            )
            return np.asarray(Image.open(io.BytesIO(bytes(content))).convert("RGB")).astype(int)

        def painted():
            "How many pixels of the canvas have the grey of a mask."
            return page.evaluate(
                "e => { const d = e.getContext('2d').getImageData(0, 0, e.width, e.height).data; let n = 0;"
                " for (let i = 0; i < d.length; i += 4) n += d[i] == 128 && d[i+1] == 128 && d[i+2] == 128; return n }",
                canvas.element_handle(),
            )

        def changed(before, what):
            "Wait for another picture; return pixels and figures."
            for _ in range(240):
                if picture.get_attribute("src") != before:
                    break
                page.wait_for_timeout(250)
            else:
                pytest.fail(f"The picture stayed after {what}.")
            page.wait_for_timeout(1500)
            return pixels(), figures.inner_text()

        part = lambda image, i: image[14:142, 132 * i : 132 * i + 128]  # the i-th picture of the first row

        first, numbers = pixels(), figures.inner_text()
        src = picture.get_attribute("src")
        handle = view.locator(".widget-slider", has_text="mask").locator(".noUi-handle").first
        handle.focus()
        handle.press("ArrowRight")
        moved, moved_numbers = changed(src, "the slider")
        assert np.array_equal(part(moved, 0), part(first, 0)) and not np.array_equal(part(moved, 1), part(first, 1))
        assert moved_numbers != numbers

        src, before = picture.get_attribute("src"), painted()
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.move(*at(0.3, 0.5))
        page.mouse.down()
        page.mouse.move(*at(0.7, 0.5), steps=8)
        page.mouse.up()
        brushed, brushed_numbers = changed(src, "painting")
        assert painted() > before + 1000 and brushed_numbers != moved_numbers
        assert (part(brushed, 1)[60:68, 50:78] == 128).all()  # the stroke is hidden from the models
        assert np.array_equal(part(brushed, 1)[:40], part(brushed, 0)[:40])  # and nothing else is
        if place := os.environ.get("EXPLORER_SHOT"):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            view.screenshot(path=place)

        src = picture.get_attribute("src")
        Image.new("RGB", (90, 50), (250, 10, 30)).save(tmp_path / "red.png")
        with page.expect_file_chooser() as chooser:
            view.get_by_role("button", name="upload").click()
        chooser.value.set_files(tmp_path / "red.png")
        uploaded, uploaded_numbers = changed(src, "the upload")
        assert (part(uploaded, 0) == (250, 10, 30)).all() and uploaded_numbers != brushed_numbers
        browser.close()
