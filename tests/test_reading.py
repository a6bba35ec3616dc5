"Every kind of image file, whole and damaged, through the one reader: the picture that was meant, or a `DataError`."

import io, os, struct, warnings, zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from saaae.data import DataError
from saaae.sources.folder import folder_images
from saaae.sources.images import read_image

RNG = np.random.RandomState(0)
PIXELS = RNG.randint(0, 256, (6, 8, 3)).astype(np.uint8)
LOSSLESS = dict(PNG={}, TIFF={}, WEBP=dict(lossless=True))
D50 = np.array([[0.9642, 1, 0.8249]])


def encode(image, kind="PNG", **options):
    "An image, or an array of one, as the content of a file."
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def got(content):
    "What the reader makes of it; no warning may be left over."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def chunks(png):
    "The chunks of a PNG file: kind and content."
    at = 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def png_of(parts, spoilt=None):
    "A PNG file of these chunks; the check sum of kind `spoilt` is wrong."
    sums = [struct.pack(">I", zlib.crc32(kind + content) ^ (kind == spoilt)) for kind, content in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + total for (kind, content), total in zip(parts, sums)
    )


# Colours


def fixed(v):
    return struct.pack(">i", round(v * 65536))


def curve(*values):
    "A tone curve: a gamma, or samples on [0, 1]."
    numbers = [round(v * 256) for v in values] if len(values) == 1 else [round(v * 65535) for v in values]
    return b"curv\0\0\0\0" + struct.pack(">I", len(numbers)) + b"".join(struct.pack(">H", n) for n in numbers)


def icc(space, kind=b"mntr", connection=b"XYZ ", **tags):
    "A profile (ICC.1:2001) with these tags."
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(78)
    tags = dict(desc=text, cprt=b"text\0\0\0\0a\0", wtpt=b"XYZ \0\0\0\0" + b"".join(map(fixed, D50[0]))) | tags
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += name.encode() + struct.pack(">II", start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I", start + len(body)) + b"\0\0\0\0\x02\x10\0\0" + kind + space + connection + bytes(12)
    return (head + b"acsp" + bytes(28) + b"".join(map(fixed, D50[0]))).ljust(128, b"\0") + table + body


def matrix_profile(columns, tone):
    "A profile of a screen: the XYZ of its three primaries, and its tone curve."
    xyz = {f"{c}XYZ": b"XYZ \0\0\0\0" + b"".join(map(fixed, column)) for c, column in zip("rgb", columns)}
    return icc(b"RGB ", **xyz, **{f"{c}TRC": tone for c in "rgb"})


SRGB = np.array(
    [(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
)  # to D50, a row a primary
ADOBE = np.array([(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)])
LEVELS = np.linspace(0, 1, 1024)
SRGB_TONE = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)
ADOBE_PROFILE = matrix_profile(ADOBE, curve(2.19921875))
SRGB_PROFILES = dict(
    lcms=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    samples=matrix_profile(SRGB, curve(*SRGB_TONE)),  # as HP and Microsoft's
    few=matrix_profile(SRGB, curve(*SRGB_TONE[::33])),  # as the tiny ones of web sites
)
GREY_PROFILE = icc(b"GRAY", kTRC=curve(1.8))  # as of old scanners and Macintoshes


def to_srgb(light):
    "Levels of sRGB for linear light on [0, 1]."
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_colours_go_through_the_profile(kind):
    "Against the matrices of both colour spaces, within 3 levels: tables, rounding, and the format's own loss."
    for colour in ((60, 200, 60), (200, 60, 60), (90, 90, 200), (128, 128, 128), (255, 255, 255), (20, 30, 40)):
        light = (np.array(colour) / 255) ** 2.19921875 @ ADOBE @ np.linalg.inv(SRGB)
        plain = Image.new("RGB", (16, 16), colour)
        content = encode(plain, kind, icc_profile=ADOBE_PROFILE, quality=100, subsampling=0)
        assert abs(got(content)[8, 8] - to_srgb(light)).max() <= 3, colour


@pytest.mark.parametrize("name", SRGB_PROFILES)
def test_srgb_stays_to_the_byte(name):
    for kind, options in LOSSLESS.items():
        assert (got(encode(PIXELS, kind, icc_profile=SRGB_PROFILES[name], **options)) == PIXELS).all(), kind


def test_what_the_file_said_is_not_said_of_the_converted_image():
    "Saved again, it would be turned and converted twice."
    (exif := Image.Exif())[0x0112] = 6
    assert not read_image(encode(PIXELS, exif=exif, icc_profile=ADOBE_PROFILE)).info


def test_grey_profiles():
    ramp = np.arange(256, dtype=np.uint8)[None]
    right = to_srgb((ramp / 255) ** (461 / 256))[..., None]  # the gamma as it is stored
    for kind in ("PNG", "TIFF", "JPEG"):
        assert abs(got(encode(ramp, kind, icc_profile=GREY_PROFILE, quality=100)) - right).max() <= 2, kind
    deep = got(encode(ramp.astype(np.uint16) * 257, icc_profile=GREY_PROFILE))
    assert abs(deep - right).max() <= 2
    like_srgb = icc(b"GRAY", kTRC=curve(*SRGB_TONE))
    assert (got(encode(ramp, icc_profile=like_srgb)) == ramp[..., None]).all()


def test_a_profile_goes_with_palettes_and_transparency():
    colour, half = (60, 200, 60), np.full((4, 4), 128, np.uint8)
    plain = Image.new("RGB", (4, 4), colour)
    shown = got(encode(plain, icc_profile=ADOBE_PROFILE))[0, 0]
    assert abs(got(encode(plain.quantize(2), icc_profile=ADOBE_PROFILE))[0, 0] - shown).max() <= 1
    clear = plain.copy()
    clear.putalpha(Image.fromarray(half))
    assert abs(got(encode(clear, icc_profile=ADOBE_PROFILE))[0, 0] - (shown * 128 + 255 * 127) / 255).max() <= 1
    grey = Image.merge("LA", [Image.new("L", (4, 4), 128), Image.fromarray(half)])
    light = to_srgb(np.array(128 / 255) ** (461 / 256))
    assert abs(got(encode(grey, icc_profile=GREY_PROFILE))[0, 0] - (light * 128 + 255 * 127) / 255).max() <= 2


def test_inks_go_through_their_profile():
    "A table of one step an ink: no ink is white, all with full black are black, full cyan is a blue of Lab."

    def lab(c, m, y, k):
        return (0, 128, 128) if k else (128, 128, 68) if c else (255, 128, 128)

    nodes = [lab(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + b"".join(map(fixed, np.eye(3).ravel()))
    table += ramp * 4 + bytes(np.array(nodes, np.uint8)) + ramp * 3
    profile = icc(b"CMYK", b"prtr", b"Lab ", A2B0=table)
    for kind in ("JPEG", "TIFF"):
        for inks, right in (((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))):
            content = encode(Image.new("CMYK", (16, 16), inks), kind, icc_profile=profile, quality=100)
            assert abs(got(content)[8, 8] - right).max() <= 3, (kind, inks)
        cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
        shown = got(encode(cyan, kind, quality=100, icc_profile=profile))[8, 8]
        assert shown[2] > 150 > shown[1] > shown[0], (kind, shown)  # where (0, 255, 255) is what there is without one


def test_inks_without_a_profile():
    "JPEG has them inverted, as Adobe writes it."
    inks = RNG.randint(0, 256, (1, 1, 4)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    right = 255 * (1 - inks[0, 0, :3] / 255) * (1 - inks[0, 0, 3] / 255)
    for kind in ("JPEG", "TIFF"):
        assert abs(got(encode(Image.fromarray(inks, "CMYK"), kind, quality=100))[8, 8] - right).max() <= 2, kind


def test_lab_becomes_srgb():
    "Within 2 levels of the formulas of CIE 1976, for colours that sRGB has."
    for L, a, b in ((50, 0, 0), (100, 0, 0), (0, 0, 0), (60, 30, -20), (70, -30, 40)):
        stored = (round(L * 2.55), a + 128, b + 128)
        f = np.array([(stored[0] / 2.55 + 16) / 116] * 3) + np.array([a / 500, 0, -b / 200])
        xyz = D50[0] * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
        content = encode(Image.merge("LAB", [Image.new("L", (4, 4), v) for v in stored]), "TIFF")
        assert abs(got(content)[0, 0] - to_srgb(xyz @ np.linalg.inv(SRGB))).max() <= 2, (L, a, b)


@pytest.mark.parametrize("name", ["empty", "noise", "cut", "grey", "inks", "lab", "words"])
def test_a_profile_that_does_not_fit_is_passed_over(name):
    "Damaged ones, and those of other colours than the pixels'."
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    noise = bytes(RNG.randint(0, 256, 500, np.uint8))
    profile = dict(
        empty=b"",
        noise=noise,
        cut=ADOBE_PROFILE[:200],
        grey=GREY_PROFILE,
        words=b"sRGB",
        lab=lab,
        inks=icc(b"CMYK", b"prtr", b"Lab "),
    )[name]
    for kind, options in LOSSLESS.items():
        assert (got(encode(PIXELS, kind, icc_profile=profile, **options)) == PIXELS).all(), kind
    grey, other = PIXELS[..., 0], ADOBE_PROFILE if name == "grey" else profile
    assert (got(encode(grey, icc_profile=other)) == grey[..., None]).all()


# Upright


TURNED = {  # what is shown, of what is stored
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_orientation(kind):
    blocks = PIXELS.repeat(16, 0).repeat(16, 1)  # so that what JPEG loses stays at the edges
    options = dict(LOSSLESS, JPEG=dict(quality=100, subsampling=0), AVIF=dict(quality=100))[kind]
    for orientation, turn in TURNED.items():
        (exif := Image.Exif())[0x0112] = orientation
        shown = got(encode(blocks, kind, exif=exif, **options))
        assert shown.shape == turn(blocks).shape
        assert abs(shown - turn(blocks))[8::16, 8::16].max() <= (0 if kind in LOSSLESS else 6), orientation


def test_orientation_said_by_xmp_alone():
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'.encode()
    assert (got(encode(PIXELS, "WEBP", lossless=True, xmp=xmp)) == TURNED[6](PIXELS)).all()


# Transparency, depth, frames


def test_transparency_is_laid_on_white():
    white, red = (255, 255, 255), (255, 0, 0)
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (got(encode(clear)) == 255).all() and (got(encode(clear[..., ::3])) == 255).all()
    half = got(encode(np.array([[[255, 0, 0, 128]]], np.uint8)))[0, 0]
    assert abs(half - (255, 127, 127)).max() <= 1
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    for kind, transparency in (("PNG", 0), ("GIF", 0), ("PNG", bytes([0, 255, 255]))):
        assert tuple(map(tuple, got(encode(palette, kind, transparency=transparency))[0, :2])) == (white, red), kind
    assert abs(got(encode(palette, transparency=bytes([255, 128, 255])))[0, 1] - (255, 127, 127)).max() <= 1
    for mode, value in (("L", 7), ("RGB", (7, 7, 7)), ("1", 0)):
        image = Image.new(mode, (3, 1), value)
        image.putpixel((1, 0), {"L": 9, "RGB": (9, 9, 9), "1": 1}[mode])
        shown = got(encode(image, transparency=value))
        assert (shown[0, 0] == 255).all() and (shown[0, 1] == (255 if mode == "1" else 9)).all(), mode
    deep = np.array([[7 * 257, 9 * 257]], np.uint16)
    header, *rest = chunks(encode(deep))
    assert (got(png_of([header, (b"tRNS", struct.pack(">H", 7 * 257)), *rest]))[0] == [[255] * 3, [9] * 3]).all()


def test_16_bits_become_8():
    deep = RNG.randint(0, 65536, (4, 5)).astype(np.uint16)
    for content in (
        encode(deep),
        encode(deep, "TIFF"),
        encode(deep, "PPM"),
        encode(deep.astype(np.int32), "TIFF"),
        encode(deep.astype(">u2"), "TIFF"),
    ):
        assert (got(content) == (deep // 257)[..., None]).all()
    rows = RNG.randint(0, 65536, (2, 3, 3)).astype(">u2")  # 48 bits a pixel, which Pillow does not write
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    assert abs(got(png_of([(b"IHDR", header), (b"IDAT", lines), (b"IEND", b"")])) - rows / 257).max() <= 1


def test_bilevel_and_floating_point(tmp_path):
    bits = RNG.rand(9, 11) > 0.5
    for kind in ("PNG", "TIFF", "BMP", "PPM", "GIF", "XBM"):
        shown = got(encode(bits, kind, **dict(TIFF=dict(compression="group4")).get(kind, {})))
        assert (shown == 255 * bits[..., None]).all(), kind
    with pytest.raises(DataError, match="floating-point"):
        read_image(encode(np.zeros((2, 2), np.float32), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_of_several_images_the_first(kind):
    first, *others = (Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue"))
    content = encode(first, kind, save_all=True, append_images=others)
    assert abs(got(content)[16, 16] - (255, 0, 0)).max() <= 3


def test_a_path_is_read_as_its_content(tmp_path):
    (path := tmp_path / "a.jpeg").write_bytes(encode(PIXELS))  # by what it holds, not by its suffix
    for source in (path, str(path)):
        assert (got(source) == PIXELS).all()
    before = len(os.listdir("/proc/self/fd"))
    path.write_bytes(encode(PIXELS)[:60])
    for _ in range(20):
        with pytest.raises(DataError, match="a.jpeg cannot be read as an image"):
            read_image(path)
    assert len(os.listdir("/proc/self/fd")) == before  # nothing stays open
    refused = {tmp_path / "none.png": "No such file", tmp_path: "directory", b"": "0 bytes", "a\0b": "null"}
    for source, why in refused.items():
        with pytest.raises(DataError, match=why):
            read_image(source)


# Damage


FORMATS = dict(
    LZW=dict(compression="tiff_lzw"),
    PROGRESSIVE=dict(progressive=True),
    **{kind: {} for kind in "PNG JPEG GIF BMP TIFF WEBP PPM TGA PCX JPEG2000 AVIF SGI ICO DDS QOI".split()},
)


def example(name):
    kind = dict(LZW="TIFF", PROGRESSIVE="JPEG").get(name, name)
    return encode(Image.fromarray(PIXELS).resize((24, 18)), kind, **FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_named_and_never_half_a_picture(name):
    whole = example(name)
    right = got(whole)
    for end in {*np.linspace(0, len(whole) - 1, 40).astype(int)}:
        try:
            shown = got(whole[:end])
        except DataError as e:
            assert "cannot be read as an image" in str(e)
        else:
            assert (shown == right).all(), end  # what was cut off was no pixel


KINDS = "tEXt zTXt iTXt pHYs gAMA cHRM sRGB iCCP eXIf tIME bKGD sBIT acTL fcTL abCd".split()


@pytest.mark.parametrize("kind", KINDS)
def test_a_png_with_a_damaged_chunk_is_read(kind):
    "Each kind that is no pixel, odd or with a wrong check sum; an orientation and a profile beside it count as ever."
    (exif := Image.Exif())[0x0112] = 6
    plain = [*chunks(encode(PIXELS))]
    beside = [*chunks(encode(PIXELS, exif=exif, icc_profile=ADOBE_PROFILE))]
    shown = got(png_of(beside))
    assert shown.shape == (8, 6, 3) and (shown != TURNED[6](PIXELS)).any()
    for n in (0, 1, 8, 30):
        odd = kind.encode(), bytes(RNG.randint(0, 256, n, np.uint8))
        for spoilt in (None, odd[0]):
            assert (got(png_of([plain[0], odd, *plain[1:]], spoilt)) == PIXELS).all(), (n, spoilt)
            if kind in ("iCCP", "eXIf"):
                continue  # there is one of a kind
            assert (got(png_of([beside[0], odd, *beside[1:]], spoilt)) == shown).all(), (n, spoilt)
    with pytest.raises(DataError):
        read_image(png_of(plain, b"IHDR"))


def test_odd_segments_of_jpeg_are_passed_over():
    (exif := Image.Exif())[0x0112] = 6
    whole = encode(PIXELS, "JPEG", exif=exif)
    right = got(whole)
    for marker in range(0xE1, 0xF0):
        for start in (b"", b"Exif\0\0", b"ICC_PROFILE\0\x01\x01", b"MPF\0", b"Photoshop 3.0\0", b"http://ns.adobe"):
            content = start + bytes(RNG.randint(0, 256, 40, np.uint8))
            odd = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
            shown = got(whole[:2] + odd + whole[2:])
            mask = start == b"Exif\0\0" and marker == 0xE1  # its own EXIF comes second, and is not looked at
            assert np.array_equal(shown, np.rot90(right) if mask else right), (marker, start)


TAGS = (0x0112, 0x0100, 0x010F, 0x011A, 0x02BC, 0x8769, 0x8825, 0xA005, 0x927C, 0x83BB, 0x8773)
VALUES = (0, 6, 9, 65535, 2**32 - 1)


def entries():
    "A field of an image file directory, of each type, with right and wrong counts, values and offsets."
    for tag in TAGS:
        for kind in (*range(20), 65535):
            for count in (0, 1, 2, 4, 65535, 2**32 - 1):
                yield tag, kind, count, VALUES[(tag + kind + count) % len(VALUES)]


def directory(fields):
    return struct.pack("<H", len(fields)) + b"".join(struct.pack("<HHII", *field) for field in fields) + bytes(4)


def test_every_type_of_tag_in_exif_leaves_the_picture():
    options = dict(PNG={}, WEBP=dict(lossless=True), JPEG={})
    whole = {kind: encode(PIXELS, kind, exif=b"Exif\0\0" + b"@" * 42, **own) for kind, own in options.items()}
    plain = {kind: got(encode(PIXELS, kind, **own)) for kind, own in options.items()}
    for i, field in enumerate(entries()):
        kind = ("PNG", "WEBP", "JPEG")[i % 3]
        exif = b"II*\0\x08\0\0\0" + directory([field]).ljust(34, b"\0")
        content = whole[kind].replace(b"@" * 42, exif)
        assert exif in content
        if kind == "PNG":
            content = png_of([*chunks(content)])  # its check sum
        shown = got(content)
        assert sorted(shown.ravel()) == sorted(plain[kind].ravel()), field  # the same pixels, perhaps turned


def test_every_type_of_tag_in_tiff_gives_an_image_or_is_named():
    whole = encode(PIXELS, "TIFF")
    at = struct.unpack("<I", whole[4:8])[0]
    (n,) = struct.unpack("<H", whole[at : at + 2])
    own = [*struct.iter_unpack("<HHII", whole[at + 2 : at + 2 + 12 * n])]
    read = 0
    for field in entries():
        fields = sorted([f for f in own if f[0] != field[0]] + [field])
        try:
            read += got(whole[:4] + struct.pack("<I", len(whole)) + whole[8:] + directory(fields)).size > 0
        except DataError as e:
            assert "cannot be read as an image" in str(e)
    assert read > 500


@pytest.mark.parametrize("name", FORMATS)
def test_spoilt_bytes_give_an_image_or_are_named(name):
    "Anywhere in the first 300 bytes, where formats have their fields, 200 times."
    whole, rng = example(name), np.random.RandomState(1)
    for _ in range(200):
        content = bytearray(whole)
        for at in rng.randint(0, min(300, len(whole)), rng.randint(1, 4)):
            content[at] = rng.choice([0, 1, 127, 255, rng.randint(256)])
        try:
            got(bytes(content))
        except DataError as e:
            assert "cannot be read as an image" in str(e)


ERRORS = [
    struct.error,
    zlib.error,
    TypeError,
    IndexError,
    ZeroDivisionError,
    KeyError,
    MemoryError,
    RecursionError,
    AttributeError,
    AssertionError,
    OverflowError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    UnicodeError,
    BufferError,
    Image.DecompressionBombError,
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", ["open", "load", "getexif", "convert"])
def test_no_exception_ends_a_run_over_a_folder(tmp_path, monkeypatch, error, step):
    "Whatever Pillow raises, wherever, for one file: it is named, unless its metadata are at fault; others are read."
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode(PIXELS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plain_open, calls = Image.open, []

    def raises(*args, **kwargs):
        raise error

    def spoilt(source, *args, **kwargs):
        calls.append(source)
        if step == "open" and (str(source).endswith("1.png") or isinstance(source, io.BytesIO)):
            raises()
        image = plain_open(source, *args, **kwargs)
        if str(source).endswith("1.png") or isinstance(source, io.BytesIO):
            setattr(image, step, raises)
        return image

    monkeypatch.setattr(Image, "open", spoilt)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = folder_images(tmp_path, "train", 8)
    named = [str(w.message) for w in said if "1.png cannot be read" in str(w.message)]
    assert (len(images), len(said)) == ((2, 0) if step == "getexif" else (1, 1)) and len(named) == (step != "getexif")


def test_huge_images_are_refused_and_nothing_is_spilt():
    "By Pillow's own bound, or a caller's; a large one below it is decoded without Pillow's warning."

    def header(side):
        sizes = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        return png_of([(b"IHDR", sizes), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")])

    for side in (10_000, 20_000):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(DataError, match="cannot be read as an image"):
                read_image(header(side))
    with pytest.raises(DataError, match="more than 40 million pixels"):
        read_image(header(8000), 40_000_000)
