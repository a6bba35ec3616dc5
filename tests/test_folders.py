"Folders as people have them: leftovers, links, splits by any name; caches that know contents; where downloads go."

import importlib.util, os, shutil, warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from saaae.sources import folder, photos64 as photographs, stl10 as archive
from saaae.data import DataError
from saaae.sources.folder import find_files, find_images, folder_images, image_suffixes, split_images
from saaae.sources.photos64 import photos64


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of its own, outside of the folder of pictures."
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def picture(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (12, 16, 3)).astype(np.uint8)).save(path, **options)


def lay(root, *names, n=1):
    "Files of no content; `n` images in each folder, which is a name with a slash at its end."
    for name in names:
        for path in [root / name] if name[-1] != "/" else [root / name / f"{i}.png" for i in range(n)]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def splits(root, warned=0):
    "How many images of which class each split has; `warned`: how many lines tell of what was left out."
    own, left = split_images(root)
    assert len(left) == warned, left
    return [dict(Counter(kind for _, kind in own[split])) for split in ("train", "test")]


def names(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [str(path.relative_to(root)) for path, _ in find_images(root)]


# What is there


def test_hidden_and_archive_folders_are_passed_over(root):
    lay(
        root,
        "cat/0.jpg",
        "dog/0.jpg",
        ".ipynb_checkpoints/0-checkpoint.jpg",
        "cat/.ipynb_checkpoints/0.jpg",
        "__MACOSX/cat/0.jpg",
        "__MACOSX/cat/._0.jpg",
        "cat/._0.jpg",
        ".thumbnails/0.jpg",
        "cat/@eaDir/0.jpg/M.jpg",
        "$RECYCLE.BIN/S-1-5/$R0.jpg",
        "System Volume Information/0.jpg",
        "lost+found/0.jpg",
        ".Trash-1000/files/0.jpg",
        "#recycle/0.jpg",
        ".git/0.png",
        ".DS_Store",
        "cat/Thumbs.db",
        "desktop.ini",
        "Icon\r",
        "README",
        "README.txt",
        "labels.csv",
        "LICENSE",
        "meta.json",
        "annotations/0.xml",
    )
    assert names(root) == ["cat/0.jpg", "dog/0.jpg"] and splits(root) == [{"cat": 1}, {"dog": 1}]


def test_a_hidden_folder_that_is_asked_for_is_read(root):
    lay(root, ".pictures/of.mine/0.jpg")
    assert names(root) == [] and names(root / ".pictures") == ["of.mine/0.jpg"]
    assert names(root / ".pictures" / "of.mine") == ["0.jpg"]


READABLE = """.jpg .JPG .jpeg .jpe .jfif .png .apng .gif .bmp .dib .tif .tiff .webp .avif .jp2 .j2k .mpo .ppm .pgm .pbm
    .tga .ico .psd .pcx .dds""".split()
LEFT_OUT = """.HEIC .heif .cr2 .nef .dng .arw .mp4 .mov .mpg .svg .eps .ps .wmf .h5 .hdf .grib .npy .zip .jxl
    .jpg_large""".split()


@pytest.mark.parametrize("suffix", READABLE)
def test_the_suffixes_are_pillows(root, suffix):
    lay(root, f"a{suffix}")
    assert names(root) == [f"a{suffix}"]


def test_what_may_have_been_meant_as_an_image_is_counted_in_one_warning(root):
    for i in range(6):
        picture(root / f"{i}.png", i)
    lay(root, *(f"a{i}{suffix}" for i, suffix in enumerate(LEFT_OUT)), "a.jpg:large", "b.heic", "unnamed", "notes.txt")
    for name, to in {"cats.png": "nowhere", "dogs": "/media/usb/dogs", "me": "me"}.items():
        (root / name).symlink_to(to)
    os.mkfifo(root / "pipe.png")
    (root / "broken.png").write_bytes(b"<html>404")
    for read in (lambda: folder_images(root, "train", 8), lambda: find_images(root)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            read()
        (said,) = (str(w.message) for w in said)
        for name in ("cats.png", "dogs", "me"):
            assert f"{name} is left out: it links to nothing" in said
        assert "2 .heic" in said and "pipe.png is left out: it is no file" in said and "notes" not in said


def test_plugins_that_a_user_registers_count(root, monkeypatch):
    "As pillow-heif does."
    Image.init()
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, None)), monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert ".heic" in image_suffixes()


def test_a_folder_that_cannot_be_opened_is_named(root, monkeypatch):
    lay(root, "a/", "b/")
    plain = os.listdir

    def listdir(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.warns(UserWarning, match="b is left out: it cannot be opened \\(Permission denied\\)"):
        assert len(find_images(root)) == 1


# Links


def test_linked_files_and_folders_are_followed(root, tmp_path):
    lay(tmp_path / "elsewhere", "cat/0.png", "1.png")
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "dog").mkdir()
    (root / "dog" / "0.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "link").symlink_to(root)
    assert names(root) == names(tmp_path / "link") == ["cat/0.png", "dog/0.png"]


@pytest.mark.parametrize("loop", ["self", "root", "above", "mutual", "deep"])
def test_loops_end_and_no_file_is_read_twice(root, loop):
    lay(root, "a/0.png", "b/0.png", "c/d/0.png")

    def link(at, to):
        (root / at).symlink_to(to, target_is_directory=True)

    if loop == "self":
        link("a/a", "../a")
    if loop == "root":
        link("a/up", root)
    if loop == "above":
        link("a/up", root.parent), lay(root.parent, "other.png")
    if loop == "mutual":
        link("a/b", "../b"), link("b/a", "../a")
    if loop == "deep":
        link("c/d/e", "../../c")
    files, left = find_files(root, {".png"})
    assert [str(p.relative_to(root)) for p in files] == ["a/0.png", "b/0.png", "c/d/0.png"]
    assert left and all("is read already, or is around it" in line for line in left)


def test_a_folder_met_twice_keeps_its_own_name_and_the_other_is_named(root):
    lay(root, "z/", "2024-05/")
    (root / "a").symlink_to("z"), (root / "latest").symlink_to("2024-05")
    with pytest.warns(UserWarning, match="a is left out.*\n.*latest is left out"):
        assert {kind for _, kind in find_images(root)} == {"z", "2024-05"}


# Splits


def before(root):
    "Every sixth of a class, as it was drawn in earlier versions."
    own, seen = dict(train=[], test=[]), Counter()
    for path in sorted(root.rglob("*.png")):
        kind = path.relative_to(root).parts[0] if path.parent != root else "images"
        seen[kind] += 1
        own["test" if seen[kind] % 6 == 0 else "train"].append((path, kind))
    return own


@pytest.mark.parametrize(
    "folders",
    [
        ["./"],
        ["cat/", "dog/"],
        ["./", "b/c/", "b/d/", "A/"],
        ["mine/"],
        ["mine/a/", "mine/b/"],
        ["train/", "bus/"],
        ["contest/", "latest/", "retrain/", "devices/"],
    ],
)
def test_plain_folders_are_drawn_as_they_were(root, folders):
    lay(root, *folders, n=13)
    assert split_images(root) == (before(root), [])


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("train", "val", "test"),
        ("Train", "Val", "Test"),
        ("TRAIN", "VALID", "TEST"),
        ("training", "validation", "testing"),
        ("train2017", "val2017", "test2017"),
        ("train_images", "dev_images", "test-images"),
        ("seg_train", "seg_dev", "seg_test"),
    ],
)
def test_splits_by_name(root, train, val, test):
    "Images for validation are the test where there is no other, and are never trained on."
    lay(root, f"{train}/cat/", f"{train}/dog/", n=7)
    assert splits(root) == [{"cat": 6, "dog": 6}, {"cat": 1, "dog": 1}]  # the only one: drawn from it, with its classes
    lay(root, f"{val}/cat/", n=3)
    assert splits(root) == [{"cat": 7, "dog": 7}, {"cat": 3}]
    lay(root, f"{test}/dog/", n=2)
    assert splits(root) == [{"cat": 7, "dog": 7}, {"dog": 2}]
    shutil.rmtree(root / val)
    assert splits(root) == [{"cat": 7, "dog": 7}, {"dog": 2}]
    lay(root, "more/", "loose.png", n=2)
    assert splits(root, warned=1) == [{"cat": 7, "dog": 7}, {"dog": 2}]


@pytest.mark.parametrize("only", ["test", "Val"])
def test_images_of_a_test_alone_are_not_trained_on(root, only):
    for i in range(3):
        picture(root / only / "cat" / f"{i}.png", i)
    assert splits(root) == [{}, {"cat": 3}] and len(folder_images(root, "test", 8)) == 3
    with pytest.raises(DataError, match="3 images, which are kept for the test"):
        folder_images(root, "train", 8)
    lay(root, "dog/", n=6)
    assert splits(root, warned=1) == [{only: 3, "dog": 5}, {"dog": 1}]  # beside other classes it is one, which is said


@pytest.mark.parametrize(
    "folders",
    [
        ["trainA/", "trainB/", "testA/", "testB/"],
        ["train2014/", "train2017/", "val2014/", "val2017/"],
        ["a_train/", "b_train/", "a_test/", "b_test/"],
        ["Train/", "train/", "test/"],
        ["val/", "valid/", "train/"],
    ],
)
def test_several_folders_for_one_split_are_refused_by_name(root, folders):
    lay(root, *folders)
    several = f"{folders[0][:-1]}, {folders[1][:-1]}"
    with pytest.raises(DataError, match=f"several folders for one split \\({several}\\): give"):
        split_images(root)


LAYOUTS = {  # folders of three images each; the images of each class to train on, and of the test; what is left out
    "Imagenette": (
        "imagenette2/train/n01/ imagenette2/train/n02/ imagenette2/val/n01/ imagenette2/noisy.csv",
        dict(n01=3, n02=3),
        dict(n01=3),
        0,
    ),
    "CIFAR-10 as PNG": ("train/cat/ train/frog/ test/cat/ labels.txt", dict(cat=3, frog=3), dict(cat=3), 0),
    "COCO": ("train2017/ val2017/ annotations/instances.json", dict(images=3), dict(images=3), 0),
    "Tiny-ImageNet": (
        "train/n01/images/ train/n02/images/ val/images/ val/val_annotations.txt test/images/",
        dict(n01=3, n02=3),
        dict(images=3),
        0,
    ),
    "CelebA": ("img_align_celeba/", dict(img_align_celeba=2), dict(img_align_celeba=1), 0),
    "CelebA, unpacked twice": ("celeba/img/img/ celeba/attributes.csv", dict(celeba=2), dict(celeba=1), 0),
    "Caltech-101": ("objects/accordion/ objects/ant/", dict(objects=5), dict(objects=1), 0),
    "DTD": ("dtd/images/banded/ dtd/labels/train1.txt dtd/imdb/imdb.mat", dict(dtd=2), dict(dtd=1), 1),
    "VOC": ("JPEGImages/ Annotations/0.xml ImageSets/Main/train.txt", dict(JPEGImages=2), dict(JPEGImages=1), 0),
    "cats and dogs": (
        "PetImages/Cat/ PetImages/Cat/Thumbs.db PetImages/Dog/ readme[1].txt MSR-LA.docx",
        dict(PetImages=5),
        dict(PetImages=1),
        0,
    ),
    "cats and dogs, sets": (
        "training_set/training_set/cats/ training_set/training_set/dogs/ test_set/test_set/cats/",
        dict(cats=3, dogs=3),
        dict(cats=3),
        0,
    ),
    "Intel scenes": ("seg_train/seg_train/sea/ seg_test/seg_test/sea/ seg_pred/seg_pred/", dict(sea=3), dict(sea=3), 1),
    "traffic signs": ("Train/0/ Train/1/ Test/ Meta/ Meta.csv Train.csv", {"0": 3, "1": 3}, dict(images=3), 1),
    "brain scans": ("Training/glioma/ Testing/glioma/", dict(glioma=3), dict(glioma=3), 0),
    "sign language": ("asl_train/asl_train/A/ asl_test/asl_test/", dict(A=3), dict(images=3), 0),
    "zipped on a Macintosh": (
        "set/set/train/a/ set/set/test/a/ set/.DS_Store __MACOSX/set/set/train/a/",
        dict(a=3),
        dict(a=3),
        0,
    ),
    "tests further down": ("lab/test/ lab/microscope/ field/", dict(field=3, lab=5), dict(lab=1), 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_well_known_data_sets(root, name):
    folders, *right, left = LAYOUTS[name]
    lay(root, *folders.split(), n=3)
    assert splits(root, left) == right


def test_no_image_to_validate_with_is_trained_on(root):
    for i, name in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        for j in range(6):
            picture(root / name / f"{j}.png", 10 * i + j)
    train, test = folder_images(root, "train", 8), folder_images(root, "test", 8)
    assert (train.classes, len(train), test.classes, len(test)) == (("cat", "dog"), 12, ("cat", "dog"), 12)
    assert not {p.numpy().tobytes() for p in train.pixels} & {p.numpy().tobytes() for p in test.pixels}


# The cache


def test_a_cache_knows_contents_and_not_times(root, cache, monkeypatch):
    def unpack(shift):
        shutil.rmtree(root)
        for i in range(6):
            picture(root / f"{i}.bmp", i + shift)
            os.utime(root / f"{i}.bmp", (0, 0))

    reads = []
    plain = folder.read_image
    monkeypatch.setattr(folder, "read_image", lambda path: reads.append(path) or plain(path))
    unpack(0)
    first = folder_images(root, "train", 8)
    unpack(100)  # other pixels under the same names, sizes and times
    second = folder_images(root, "train", 8)
    assert first.sha256() != second.sha256() and len(reads) == 10
    for i in range(6):
        os.utime(root / f"{i}.bmp", (10**9 + i, 10**9 + i))  # the same pixels at other times
    assert folder_images(root, "train", 8).sha256() == second.sha256() and len(reads) == 10
    picture(root / "5.bmp", 7)  # of the test
    assert folder_images(root, "train", 8).sha256() == second.sha256() and len(reads) == 10
    (root / "0.bmp").rename(root / "3.5.bmp")  # another order
    assert folder_images(root, "train", 8).sha256() != second.sha256()


def test_a_cache_knows_classes(root):
    for i in range(8):
        picture(root / f"{'ab'[i % 2]}" / f"{i}.png", i)
    assert folder_images(root, "train", 8).labels.tolist() == [0] * 4 + [1] * 3
    shutil.move(root / "b", root / "c"), picture(root / "b" / "9.png", 9)
    train = folder_images(root, "train", 8)
    assert train.classes == ("a", "b", "c") and train.labels.max() == 2


# An installation without a clone


def installed(site):
    "The module as it is imported from a folder of packages."
    spec = importlib.util.spec_from_file_location(
        "saaae.sources.files_elsewhere", site / "saaae" / "sources" / "files.py"
    )
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_an_installed_package_writes_nothing_beside_itself(tmp_path, cache, monkeypatch):
    "Data are in the clone; without one, among the user's caches; and where SAAAE_DATA says, in both cases."
    monkeypatch.delenv("SAAAE_DATA", raising=False)
    assert (here := installed(ROOT)).CLONE == ROOT and here.DATA == ROOT / "data"
    site = tmp_path / "site-packages"
    (site / "saaae" / "sources").mkdir(parents=True)
    shutil.copy(ROOT / "saaae" / "sources" / "files.py", site / "saaae" / "sources")
    there = installed(site)
    assert (there.DATA, there.CLONE) == (cache / "saaae", None)
    (site / "nbs").mkdir()
    (site / "nbs" / "00_data.ipynb").touch()
    assert (there := installed(site)).DATA == site / "data" and there.CLONE == site
    monkeypatch.setenv("SAAAE_DATA", str(tmp_path / "mine"))
    assert installed(site).DATA == tmp_path / "mine"
    monkeypatch.setenv("SAAAE_DATA", "here")
    assert installed(site).DATA == Path.cwd() / "here"


def test_downloads_go_where_data_are(tmp_path, monkeypatch):
    for module in (archive, photographs):
        monkeypatch.setattr(module, "DATA", tmp_path / "data")

    def download(root, split, size):
        raise OSError(30, "Read-only file system", str(root))

    monkeypatch.setattr(archive, "resize_stl10", download)
    with pytest.raises(DataError, match=f"written in {tmp_path / 'data' / 'STL10'}.*SAAAE_DATA"):
        archive.stl10("train", 8)
    with pytest.raises(DataError, match="SAAAE_DATA"):
        photos64("train")
