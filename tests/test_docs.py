"The site builds without a warning, every link and picture in it leads somewhere, and the code on its pages runs."

import json, os, re, shlex, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = [
    "install",
    "tutorial",
    *(f"howto/{p.stem}" for p in sorted((ROOT / "docs/howto").glob("*.md")) if p.stem != "index"),
]


class Page(HTMLParser):
    "The links and ids of a page."

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or tag == "a" and name == "name":
                self.ids.add(value)
            if name in ("href", "src") and value is not None:
                self.links.append(value)


def broken(site: Path) -> list[str]:
    "What is wrong with the links of a site: `page: link`."
    pages = {
        p: Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html") if "_static" not in p.parts
    }  # there the theme has a template
    wrong = []
    for page, content in pages.items():
        for link in content.links:
            url = urlsplit(link)
            if url.scheme in ("https", "data", "mailto"):
                continue
            target = page if not url.path else Path(os.path.normpath(page.parent / unquote(url.path)))
            fine = not url.scheme and not url.netloc and target.is_file()
            if fine and url.fragment and target in pages:
                fine = unquote(url.fragment) in pages[target].ids
            if not fine:
                wrong.append(f"{page.relative_to(site)}: {link}")
    return wrong


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    "The site, built as `make docs` does."
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-b",
            "html",
            "-d",
            str(out / "doctrees"),
            "docs",
            str(out / "html"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out / "html"


def test_every_link_and_picture_leads_somewhere(site):
    assert len(list(site.rglob("*.html"))) > 60
    assert broken(site) == []


def test_pictures_are_pictures(site):
    figures = list((site / "_images").glob("*.png"))
    assert len(figures) > 10
    for path in figures:
        with Image.open(path) as image:
            image.verify()


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|iframe)[^>]+src="(https?:)?//|<link[^>]+href="(https?:)?//', text), page


@pytest.mark.parametrize(
    "planted",
    [
        '<a href="nowhere.html">',
        '<a href="index.html#nowhere">',
        '<img src="_images/nowhere.png">',
        '<a href="http://example.org">',
    ],
)
def test_checker_finds_what_is_planted(site, tmp_path, planted):
    for name in ("index.html", "method.html"):
        shutil.copy(site / name, tmp_path / name)
    before = broken(tmp_path)
    with open(tmp_path / "method.html", "a", encoding="utf-8") as f:
        f.write(planted)
    link = re.search('"(.+)"', planted)[1]
    assert [w for w in broken(tmp_path) if w not in before] == [f"method.html: {link}"]


def test_reference_shows_shapes(site):
    def cells(page: str) -> str:
        return re.sub(r"<[^>]+>", "", (site / page).read_text(encoding="utf-8"))

    models, config, gaussian = (cells(f"api/{m}.html") for m in ("models", "config", "reparameterization"))
    assert "[b, 3, h, h] in [-1, 1]" in models  # a method's parameter
    assert "mu and logvar, [b, latent] or [b, 2, 8, 8] each" in re.sub(r"\s+", " ", models)  # what comes back
    assert "what z was drawn from" in models  # a dataclass's field
    assert "side in pixels, a multiple of 16" in config
    assert "importance [b, ...] in [0, 1]" in re.sub(r"\s+", " ", gaussian)  # a function's
    assert (site / "_modules/saaae/models.html").exists()  # the source


def test_formulas_are_as_written(site):
    text = (site / "method.html").read_text(encoding="utf-8")
    assert r"\tfrac" not in text
    assert re.search(
        r"<mfrac[^>]*>(\s|</?mrow>|</?mstyle[^>]*>)*<mn>1</mn>(\s|</?mrow>)*<mn>2</mn>", text
    )  # the half of the leak


def test_what_is_said_of_pythae_is_so():
    "The counts of docs/compare.md, from the installed package."
    import pythae.models, pythae.samplers

    count = lambda module, base: sum(
        isinstance(c, type) and issubclass(c, base) and c is not base for c in vars(module).values()
    )
    text = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    assert f"{count(pythae.models, pythae.models.BaseAE)}, from AE" in text
    assert count(pythae.samplers, pythae.samplers.BaseSampler) == 10 and "ten samplers" in text


def test_every_module_has_a_page(site):
    modules = {
        ".".join(p.relative_to(ROOT / "saaae").with_suffix("").parts) for p in (ROOT / "saaae").glob("**/[!_]*.py")
    }
    assert not [
        m
        for m in modules
        if f'id="saaae.{m}' not in re.sub("module-", "", (site / f"api/{m}.html").read_text(encoding="utf-8"))
    ]


def test_index_has_a_line_for_each_module(site):
    rows = re.findall(r"<tr.+?</tr>", (site / "api/index.html").read_text(encoding="utf-8"), re.S)
    lines = {
        m[1]: m[2] for row in rows if (m := re.search(r'<td>.*?href="([\w.]+)\.html".*?<td>(.*?)</td>', row, re.S))
    }
    pages = {p.stem for p in (site / "api").glob("*.html")} - {"index"}
    assert len(pages) > 50 and lines.keys() == pages
    assert all(len(re.sub("<[^>]+>", "", line).strip()) > 10 for line in lines.values())


def test_classes_come_before_functions(site):
    text = (site / "api/data.html").read_text(encoding="utf-8")
    first = [text.index(f'id="saaae.data.{name}"') for name in ("Images", "Images.first", "batches", "DataError")]
    assert first == sorted(first)


def test_install_names_every_extra():
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/install.md").read_text(encoding="utf-8"), re.M)
    assert sorted(told) == sorted(re.findall(r"^(\w+)_requirements *=", settings, re.M))


def test_phone_and_search(site):
    "No page of the site's own is wider than a phone, and the search finds what one looks for first."
    place = shutil.which("chromium") or shutil.which("chromium-browser")
    assert place, "The browser test needs Chromium: apt-get install chromium."
    from playwright.sync_api import sync_playwright

    pages = [p for p in sorted(site.rglob("*.html")) if not p.relative_to(site).parts[0].startswith("_")]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=place, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        wide = []
        for path in pages:
            page.goto(path.as_uri())
            if page.evaluate("document.documentElement.scrollWidth") > 390:
                wide.append(path.relative_to(site).as_posix())
        assert wide == []
        for word in ("install", "quickstart"):
            page.goto(f"{(site / 'search.html').as_uri()}?q={word}")
            page.locator("#search-results a[href^='install.html']").first.wait_for(timeout=30_000)
        browser.close()


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page, tmp_path, monkeypatch):
    for i in range(4):
        for split in ("train", "test"):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.new("RGB", (40, 50), (60 * i, 80, 120)).save(tmp_path / split / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.+?)^```", (ROOT / f"docs/{page}.md").read_text(encoding="utf-8"), re.S | re.M)
    assert blocks
    from saaae.lab.variants import VARIANTS

    monkeypatch.setattr("saaae.lab.variants.VARIANTS", dict(VARIANTS))
    torch.manual_seed(0)
    space = dict(FOLDER=tmp_path, __name__="page")
    for block in blocks:
        exec(compile(block, page, "exec"), space)


def commands() -> list[tuple[str, str]]:
    "Each line of the README's and the pages' commands, in a block without a language or in backticks: (page, line)."
    found = []
    for page in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("[a-z]*.md")),
        *sorted((ROOT / "docs/howto").glob("*.md")),
    ):
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```\n(.+?)^```$", text, re.S | re.M)
        lines = [line for block in blocks for line in block.splitlines()] + re.findall(
            r"`([^`\n]+)`", re.sub(r"^```.+?^```$", "", text, flags=re.S | re.M)
        )
        found += [(page.relative_to(ROOT).as_posix(), line) for line in lines]
    return found


def is_refused(line: str) -> str:
    "Why a command cannot be right, or nothing: no such target, option, notebook, or parameter."
    from saaae.tools.cli import parser

    words = shlex.split(line.split("#")[0])
    if words[0] == "make":
        return (
            ""
            if len(words) == 1
            or all(
                re.search(rf"^{re.escape(w)}:", (ROOT / "Makefile").read_text(), re.M)
                for w in words[1:]
                if "=" not in w
            )
            else "no such target"
        )
    if Path(words[0]).name == "saaae":
        try:
            parser().parse_args(words[1:])
        except SystemExit as e:
            return "" if e.code == 0 else "refused"
    if Path(words[0]).name == "papermill":
        if not (ROOT / words[1]).is_file():
            return "no such notebook"
        cells = json.loads((ROOT / words[1]).read_text(encoding="utf-8"))["cells"]
        own = "".join("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
        known = {*re.findall(r"^(\w+) *=", own, re.M)}
        unknown = [words[i + 1] for i, w in enumerate(words) if w == "-p" and words[i + 1] not in known]
        return f"no parameter {', '.join(unknown)}" if unknown else ""
    return ""


STARTS = re.compile(r"(make( |$)|(\.venv/bin/)?(saaae|papermill) )")


def test_commands_can_be_right():
    given = [(page, line) for page, line in commands() if STARTS.match(line) and "..." not in line]
    assert len(given) > 30 and {p for p, _ in given} >= {"README.md", "docs/howto/command.md", "docs/howto/watch.md"}
    assert [(page, line, why) for page, line in given if (why := is_refused(line))] == []


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "saaae rebuilt holiday",
        "saaae info",
        "saaae train --out a --epoch 3",
        "papermill nbs/nothing.ipynb out.ipynb",
        ".venv/bin/papermill nbs/lab/variant.ipynb out.ipynb -k python3 -p varient saaae",
    ],
)
def test_wrong_commands_are_found(line):
    assert is_refused(line)


def test_faults_are_tested():
    """Each row of docs/faults.md names tests that pytest collects, and each test of tests/test_faults.py is in the
    table."""
    rows = re.findall(
        r"^\| (?!Fault |-)(.+?) \| .+ \| (.+?) \|$", (ROOT / "docs/faults.md").read_text(encoding="utf-8"), re.M
    )

    def collect(*which):
        "All tests, by their files."
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *which, "tests"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        return {(file, test) for file, test in re.findall(r"^(tests/\w+\.py)::(.+)$", said, re.M)}

    plain = lambda tests: {t.partition("[")[0] for t in tests}
    by_file = collect()
    every, own, slow = (
        {t for _, t in by_file},
        plain(t for f, t in by_file if f == "tests/test_faults.py"),
        plain(t for _, t in collect("-m", "slow")),
    )
    named = {fault: re.findall(r"`([^`]+)`", cell) for fault, cell in rows}
    assert len(rows) > 20 and all(named.values())
    assert [
        n
        for names in named.values()
        for n in names
        if n not in every | plain(every) and not ("/" in n and (ROOT / n).is_file())
    ] == []
    assert [fault for fault, cell in rows if ("(slow)" in cell) != bool(plain(named[fault]) & slow)] == []
    checks_another = {"test_enough_of_those_configs_trained"}
    assert own - plain(n for names in named.values() for n in names) == checks_another
