"""How long the explorer takes to be there, and to follow the mouse, in Chromium: `python tools/time_explorer.py` writes
results/explore/times.md. On a machine with nothing else to do."""

import os, shutil, sys, tempfile, time
from pathlib import Path

import pandas as pd
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from test_browser import across, control, open_tab, opened, picture, run_all, serve

# From the mouse's move to the next picture that the browser has loaded, in milliseconds.
WATCH = """image => {
    window.moved = null; window.took = [];
    const began = () => { if (window.moved === null) window.moved = performance.now(); };
    document.addEventListener("pointermove", began, true);
    image.addEventListener("load", () => {
        if (window.moved === null) return;
        window.took.push(performance.now() - window.moved);
        window.moved = null;
    });
}"""


def follow(page: Page, name: str, caption: str, way: int, moves: int = 20) -> list[float]:
    "Drag a slider, a step at a time."
    picture(page, caption).evaluate(WATCH)
    ((x, y),) = across(control(page, name).locator(".noUi-handle"), (0.5, 0.5))
    page.mouse.move(x, y)
    page.mouse.down()
    page.wait_for_timeout(1000)
    page.evaluate("window.moved = null; window.took = []")
    for i in range(moves):
        page.mouse.move(x + 4 * way * (i + 1), y)
        page.wait_for_timeout(400)  # sooner than it settles, as when one drags on
        page.evaluate("window.moved = null")
    page.mouse.up()
    return page.evaluate("window.took")


def main() -> None:
    "Measure, print and write."
    rows = []
    with tempfile.TemporaryDirectory() as away, sync_playwright() as p, serve(Path(away)) as (address, _):
        chromium = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for turn in ("first", "again"):
            page = opened(chromium, address, (1440, 900))
            start = time.perf_counter()
            run_all(page)
            rows.append(dict(what=f"ready after Run All Cells, {turn}", seconds=time.perf_counter() - start))
            if turn == "first": page.close()
        for tab, inner, name, caption, way in (("Photograph, any size", None, "bytes", "rebuilt", -1),
                                               ("Gate, 64x64", "image", "mask", "SAAAE", 1)):
            open_tab(page, tab)
            if inner: open_tab(page, inner)
            took = pd.Series(follow(page, name, caption, way)) / 1000
            rows += [dict(what=f"{tab}: {name} dragged, {part} of {len(took)}", seconds=took.quantile(q))
                     for part, q in (("median", .5), ("nine of ten", .9))]
        chromium.close()
    lines = ["| the explorer, in Chromium | seconds |", "|---|---:|"]
    lines += [f"| {row['what']} | {row['seconds']:.2f} |" for row in rows]
    cpu = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name"))
    text = "\n".join([*lines, "", f"{cpu}, {os.cpu_count()} cores, nothing else running.", ""])
    (ROOT / "results" / "explore" / "times.md").write_text(text)
    print(text)


if __name__ == "__main__": main()
