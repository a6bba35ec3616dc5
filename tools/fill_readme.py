"""Fill the tables of README and pages from committed files, between `<!-- table FILE -->` and `<!-- end -->`.

python tools/fill_readme.py
"""

import re, subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.S)


def committed(path: str) -> str:
    """A file as git has it (staged or committed), since `make reproduce` rewrites the working copy; without git, the
    file."""
    shown = subprocess.run(["git", "-C", ROOT, "show", f":{path}"], capture_output=True, text=True)
    return shown.stdout if shown.returncode == 0 else (ROOT / path).read_text()


def fill(readme: str) -> str:
    "`readme` with every block's content taken from its file."
    return BLOCK.sub(lambda m: m[1] + committed(m[2]).strip() + "\n" + m[3], readme)


def pages() -> list[Path]:
    "README and the pages of the site."
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


if __name__ == "__main__":
    for path in pages():
        path.write_text(fill(path.read_text()))
