"""Build photos64 again: fetch the photographs that `sources.csv` lists, shrink them, write `photographs/` and
`photographs.csv`; or leave the originals in the user's cache, for the models that work at any size. Needs a Debian or
Ubuntu machine (apt-get, dpkg) and the package `saaae`; see `README.md`.

    python data/photos64/build.py
    python data/photos64/build.py --originals
"""
import csv, hashlib, json, struct, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from saaae.sources.files import user_cache
from saaae.sources.images import read_image
from saaae.sources.photos64 import cut_crops

HERE = Path(__file__).parent
SHORT_SIDE = 144    # pixels kept of the shorter side: for crops of 40 to 100 % of it; all photographs fit in 12 MB
BITS = 3            # a pixel, of the originals' files
TEST_SHARE = 6      # one photograph in six of each class is held out


def qrc_files(blob: bytes) -> dict[str, bytes]:
    "The files inside a Qt resource file (`.rcc`, header `qres`), by path; uncompressed nodes only, as photographs are."
    if blob[:4] != b"qres": raise ValueError("not a Qt resource file")
    version, tree, data, names = struct.unpack(">4I", blob[4:20])
    node_size = 22 if version >= 2 else 14

    def name(offset):
        n, = struct.unpack_from(">H", blob, names + offset)
        return blob[names + offset + 6: names + offset + 6 + 2 * n].decode("utf-16-be")

    found, stack = {}, [(0, "")]
    while stack:
        index, parent = stack.pop()
        at = tree + index * node_size
        name_at, flags = struct.unpack_from(">IH", blob, at)
        path = parent if index == 0 else f"{parent}/{name(name_at)}"
        if flags & 2:    # a folder: how many children, and the first one's index
            count, first = struct.unpack_from(">2I", blob, at + 6)
            stack += [(first + i, path) for i in range(count)]
        elif not flags & 1:
            start = data + struct.unpack_from(">I", blob, at + 10)[0]
            size, = struct.unpack_from(">I", blob, start)
            found[path] = blob[start + 4: start + 4 + size]
    return found


def fetch(package: str, folder: Path) -> Path:
    "Download and unpack one Debian (`NAME`) or Python (`pypi:NAME==VERSION`) package, without installing it."
    folder.mkdir(parents=True, exist_ok=True)
    if package.startswith("pypi:"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--only-binary=:all:",
                "-d",
                folder,
                package[5:],
            ],
            check=True,
        )
        for wheel in folder.glob("*.whl"):
            subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, folder], check=True)
    else:
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
        for deb in folder.glob("*.deb"): subprocess.run(["dpkg", "-x", deb, folder], check=True)
    return folder


def find(root: Path, member: str) -> tuple[Path, str]:
    "The file under `root` whose path ends in `member`, and the path inside it where it is an archive."
    outer, _, inner = member.partition(":")
    hits = [p for p in root.rglob(Path(outer).name) if str(p).endswith("/" + outer)]
    if len(hits) != 1: raise FileNotFoundError(f"{member}: {len(hits)} matches under {root}")
    return hits[0], inner


def shrink(image: Image.Image, scale: float) -> Image.Image:
    "`image`, smaller."
    return image if scale >= 1 else image.resize([round(s * scale) for s in image.size], Image.Resampling.LANCZOS)


def photographs(root: Path):
    "Row of `sources.csv`, split, image and its file's bytes, of each photograph; missing packages are fetched."
    sources = list(csv.DictReader(open(HERE / "sources.csv")))
    for package in {r["package"] for r in sources}:
        if not (root / package).exists(): fetch(package, root / package)
    archives = {}
    for r, split in zip(sources, splits([r["class"] for r in sources])):
        path, inner = find(root / r["package"], r["member"])
        if inner and path not in archives: archives[path] = qrc_files(path.read_bytes())
        content = archives[path][inner] if inner else path.read_bytes()
        yield r, split, read_image(content), len(content)


def originals(root: Path, out: Path):
    """Leave the photographs in `out`/train and `out`/test, each shrunk until `BITS` a pixel had been spent on what is
    left (most were compressed), but not below `SHORT_SIDE`."""
    pixels = 0
    for i, (r, split, image, size) in enumerate(photographs(root)):
        scale = (8 * size / BITS / (image.width * image.height)) ** .5
        image = shrink(image, max(scale, SHORT_SIDE / min(image.size)))
        path = out / split / f"{i:03d}_{r['class']}.webp"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, lossless=True, quality=50, method=2)
        pixels += image.width * image.height
    print(f"{i + 1} photographs, {pixels / 1e6:.0f} megapixels, in {out}")


def splits(classes: list[str]) -> list[str]:
    "`test` for one photograph in six of each class, drawn with a fixed seed, else `train`."
    split, rng = ["train"] * len(classes), np.random.RandomState(64)
    for c in sorted(set(classes)):
        members = rng.permutation([i for i, x in enumerate(classes) if x == c])
        for i in members[: round(len(members) / TEST_SHARE)]: split[i] = "test"
    return split


def build(root: Path):
    "Build the data set from the packages under `root`, one folder each; those that are not there are fetched."
    out = HERE / "photographs"
    out.mkdir(exist_ok=True)
    for old in out.glob("*.webp"): old.unlink()
    rows = []
    for i, (r, split, image, _) in enumerate(photographs(root)):
        name = f"{i:03d}_{r['class']}.webp"
        shrink(image, SHORT_SIDE / min(image.size)).save(out / name, lossless=True, quality=100, method=4)
        pixels = np.asarray(Image.open(out / name).convert("RGB"))
        rows.append(dict(file=name, **{"class": r["class"]}, split=split, author=r["author"], licence=r["licence"],
                         source=r["source"], width=pixels.shape[1], height=pixels.shape[0],
                         sha256=hashlib.sha256(pixels.tobytes()).hexdigest()))
    with open(HERE / "photographs.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    hashes = {s: cut_crops(HERE, s).sha256() for s in ("train", "test")}
    (HERE / "crops.json").write_text(json.dumps(hashes, indent=1) + "\n")
    print(f"{len(rows)} photographs, {sum(p.stat().st_size for p in out.iterdir()) / 1e6:.1f} MB, in {out}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        if "--originals" in sys.argv: originals(Path(folder), user_cache() / "originals")
        else: build(Path(folder))
