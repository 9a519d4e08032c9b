"""Images of every kind: an explanation that is right, or one error that says what is wrong."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_nets import COLOURS, Colours
from fuzzing import ANYTHING, arrays, damaged, examples, refused, result_or_refusal, tensors, unchanged
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from camtools import Explainer, Preprocess
from camtools.images import read_image

MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "La",
    "I;16",
)
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([1, 1, 2, 3, 500, 3000]))


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """Return noise in a mode of Pillow."""
    rng = np.random.default_rng(seed)
    if mode in ("I", "F", "I;16"):
        dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray(rng.integers(0, 60000, (height, width)).astype(dtype))
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode in ("1", "P", "PA"):
        image = Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)).convert(
            "P" if mode == "PA" else mode
        )
        return image.convert("PA") if mode == "PA" else image
    return Image.frombytes(
        mode, (width, height), rng.integers(0, 256, (height, width, bands), dtype=np.uint8).tobytes()
    )


@st.composite
def pictures(draw: st.DrawFn) -> Image.Image:
    """Draw a PIL image of any mode and aspect, with odd metadata."""
    width = draw(SIDES)
    height = draw(st.integers(1, 40) if width > 40 else SIDES)
    image = picture(draw(st.sampled_from(MODES)), width, height, draw(st.integers(0, 9)))
    if draw(st.integers(0, 3)) == 0:
        image.getexif()[274] = draw(st.sampled_from([1, 3, 6, 8, 0, 99]))
        image.info["exif"] = draw(st.sampled_from([image.getexif().tobytes(), b"Exif\0\0", b"junk", b""]))
    if draw(st.integers(0, 3)) == 0:
        image.info["transparency"] = draw(st.sampled_from([0, 255, (1, 2, 3), b"\0\xff" * 128, b"", 300, None, "x"]))
    if draw(st.integers(0, 9)) == 0:
        image.close()
    return image


MODEL = Colours().eval()
TRANSFORMS = (
    Preprocess.imagenet(32, squash=True),
    Preprocess.imagenet(32),
    Preprocess((24, 40), (24, 40), crop_mode="border"),
    Preprocess((32, 32), None),
)


def explain(image: Any, transform: Preprocess = TRANSFORMS[0], pipeline: str = "rcam", **options: Any) -> Any:
    """Explain with the colours' classifier, and check what comes out."""
    with unchanged(MODEL):
        found = result_or_refusal(
            Explainer(MODEL, pipeline, transform=transform, class_names=COLOURS), image, **options
        )
    for one in [] if refused(found) else found if isinstance(found, list) else [found]:
        height, width = one.map.shape
        assert one.map.isfinite().all() and 0 <= one.map.min() <= one.map.max() <= 1
        assert one.mask.shape == (height, width) and one.mask.dtype == torch.bool
        assert 0 <= one.score <= 1 and one.name == COLOURS[one.label]
        assert torch.equal(one.mask, one.map > one.threshold)
        for x0, y0, x1, y1 in one.boxes.tolist():
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height and one.mask[y0:y1, x0:x1].any()
    return found


@examples(2)
@given(pictures(), st.sampled_from(TRANSFORMS), st.sampled_from(["cam", "rcam", "adaptive", "fast"]))
def test_pil_images(image: Image.Image, transform: Preprocess, pipeline: str) -> None:
    found = explain(image, transform, pipeline)
    if not refused(found):
        assert tuple(found.map.shape) in {image.size, image.size[::-1]}


@examples(2)
@given(st.one_of(arrays(), arrays(st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])))))
def test_arrays(array: np.ndarray[Any, Any]) -> None:
    found = explain(array)
    if array.ndim < 4 and not refused(found):
        assert tuple(found.map.shape) == array.shape[:2]
        shown = np.asarray(read_image(array).image).astype(int)
        expected = np.asarray(array, np.float64) * {"f": 255, "b": 255}.get(array.dtype.kind, 1)
        expected = (expected / 257 if array.dtype.itemsize == 2 and array.dtype.kind == "u" else expected).clip(0, 255)
        if array.ndim == 2 or array.shape[2] != 4:
            expected = expected[..., None] if array.ndim == 2 else expected
            assert np.abs(shown - expected).max() <= 0.5 + 1e-6


@examples(2)
@given(st.one_of(tensors(), tensors(st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 40), st.integers(1, 40)))))
def test_tensors(tensor: torch.Tensor) -> None:
    found = explain(tensor)
    if tensor.ndim == 3 and not refused(found):
        assert tuple(found.map.shape) == tuple(tensor.shape[1:])
        if tensor.is_floating_point():
            alone = MODEL(tensor.detach().float()[None])[0]
            assert torch.allclose(found.logits, alone, atol=1e-4, rtol=1e-4)


@examples()
@given(st.one_of(ANYTHING, st.lists(st.one_of(pictures(), tensors(), arrays(), ANYTHING), max_size=3)))
def test_anything(image: Any) -> None:
    found = explain(image)
    assert refused(found) or isinstance(image, np.ndarray | torch.Tensor | list | tuple)


@examples()
@given(st.lists(pictures(), min_size=1, max_size=4), st.sampled_from(TRANSFORMS), st.integers(1, 4))
def test_a_batch_is_its_images(images: list[Image.Image], transform: Preprocess, batch_size: int) -> None:
    singly = [explain(image, transform) for image in images]
    explainer = Explainer(MODEL, "rcam", transform=transform, class_names=COLOURS, batch_size=batch_size)
    together = result_or_refusal(explainer, images)
    if any(map(refused, singly)):
        assert refused(together)
        return
    for one, other in zip(singly, together, strict=True):
        assert one.label == other.label and torch.allclose(one.map, other.map, atol=1e-4)


# --- files


def _written() -> dict[str, bytes]:
    """Return a file of every format that Pillow writes."""
    Image.init()
    files = {}
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "RGBA", "P", "L", "1", "I;16", "F", "CMYK"):
            buffer = io.BytesIO()
            try:
                picture(mode, 16, 16).save(buffer, kind)
            except Exception:  # formats for which Pillow has only a stub, or that do not take this mode
                continue
            files[f"{kind} {mode}"] = buffer.getvalue()
    buffer = io.BytesIO()
    picture("L", 20, 9).save(buffer, "GIF", save_all=True, append_images=[picture("P", 20, 9)])
    for options in ({"progressive": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0"}, {"icc_profile": bytes(200)}):
        buffer = io.BytesIO()
        picture("RGB", 33, 17).save(buffer, "JPEG", **options)
        files[f"JPEG {next(iter(options))}"] = buffer.getvalue()
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "jpeg"):
        buffer = io.BytesIO()
        picture("1" if compression == "group4" else "RGB", 33, 17).save(buffer, "TIFF", compression=compression)
        files[f"TIFF {compression}"] = buffer.getvalue()
    for suffix, mode in ((".bmp", "BMP"), (".png", "PNG")):
        buffer = io.BytesIO()
        picture("RGBA", 16, 16).save(buffer, "ICO", bitmap_format=suffix[1:], sizes=[(16, 16)])
        files[f"ICO {mode}"] = buffer.getvalue()
    return files


def _by_hand() -> dict[str, bytes]:
    """Return small files of formats that Pillow reads but does not write; some are headers alone."""
    row = bytes(range(48))
    pcx = io.BytesIO()
    picture("RGB", 16, 4).save(pcx, "PCX")
    ico = io.BytesIO()
    picture("RGBA", 16, 16).save(ico, "ICO", bitmap_format="bmp", sizes=[(16, 16)])
    card = "".join(
        f"{key:<8}= {value:>20}".ljust(80)
        for key, value in (("SIMPLE", "T"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", 16), ("NAXIS2", 4))
    )
    return {
        "SUN": struct.pack(">8I", 0x59A66A95, 16, 4, 24, 192, 1, 0, 0) + row * 4,
        "SUN RLE": struct.pack(">8I", 0x59A66A95, 16, 4, 24, 192, 2, 0, 0) + b"\x80\x2f\x07" * 4,
        "FITS": (card + "END".ljust(80)).ljust(2880).encode() + bytes(2880),
        "XPM": b'/* XPM */\nstatic char *a[] = {\n"4 2 2 1",\n"a c #ff0000",\n"b c None",\n"abab",\n"baba"\n};\n',
        "CUR": ico.getvalue().replace(b"\0\0\1\0", b"\0\0\2\0", 1),
        "DCX": struct.pack("<3I", 0x3ADE68B1, 12, 0) + pcx.getvalue(),
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">H2I2H3I", 3, 4, 16, 8, 3, 0, 0, 0) + b"\0\0" + row * 4,
        "GBR": struct.pack(">5I4sI", 30, 2, 16, 4, 3, b"GIMP", 10) + b"a\0" + row * 4,
        "FLI": struct.pack("<I4H", 128, 0xAF11, 1, 16, 4) + bytes(114) + struct.pack("<IH", 16, 0xF1FA) + bytes(40),
        "XVTHUMB": b"P7 332\n#END_OF_COMMENTS\n16 4 255\n" + row * 2,
        "PIXAR": b"\200\350\000\000"
        + bytes(412)
        + struct.pack("<2H", 4, 16)
        + bytes(4)
        + struct.pack("<2H", 14, 1)
        + bytes(600),
        "IMT": b"width 16\nheight 4\n\x0c" + row * 2,
        "PCD": bytes(2048) + b"PCD_" + bytes(3000),
        "FTEX": b"FTU\x57" + struct.pack("<5I", 1, 16, 16, 1, 1) + struct.pack("<3I", 1, 32, 768) + row * 16,
        "BLP1": b"BLP1" + struct.pack("<I4IB3x", 1, 8, 16, 16, 5, 1) + bytes(1300),
        "BLP2": b"BLP2"
        + struct.pack("<I4b2I", 1, 1, 8, 0, 0, 16, 16)
        + struct.pack("<32I", *[1172] * 16, *[256] * 16)
        + bytes(1400),
        "MCIDAS": bytes(7) + b"\x04" + struct.pack(">62I", *[4] * 62) + bytes(300),
        "IPTC": b"\x1c\x03\x14\0\1\2\x1c\x03\x3c\0\2\1\0\x1c\x03\x1e\0\1\x10\x1c\x03\x28\0\1\x04\x1c\x08\x0a\0\x20"
        + row,
        "QOI": b"qoif" + struct.pack(">2I2B", 16, 4, 3, 0) + b"\xfe\1\2\3" * 64 + bytes(7) + b"\1",
        "MSP": b"LinS" + bytes(28) + row * 3,
        "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 16, 4, 1000) + bytes(20),
        "EMF": b"\1\0\0\0" + struct.pack("<I8i", 108, 0, 0, 16, 4, 0, 0, 16, 4) + b" EMF" + bytes(90),
        "HDF5": b"\x89HDF\r\n\x1a\n" + row,
        "GRIB": b"GRIB\0\0\0\1" + row,
        "BUFR": b"BUFR\0\0\0\1" + row,
        "MPEG": b"\0\0\1\xb3\x01\x00\x10" + row,
        "PDF": b"%PDF-1.4" + row,
        "PPM plain": b"P3\n# a\n4 2\n255\n" + b"1 2 3 " * 8,
        "PGM 16": b"P5 4 2 65535\n" + row[:16],
        "PFM": b"Pf\n4 2\n-1.0\n" + np.linspace(0, 1, 8, dtype="<f4").tobytes(),
        "PAM": b"P7\nWIDTH 4\nHEIGHT 2\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + row[:24],
    }


FILES = _written() | _by_hand()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("files")


def test_the_files_are_of_every_format_that_pillow_reads(folder: Any) -> None:
    """But for those that need a program beside it, or are videos' and meteorologists'."""
    found = {name.partition(" ")[0] for name in FILES}
    Image.init()
    own = {name for name, (opener, _) in Image.OPEN.items() if opener.__module__.startswith("PIL.")}  # no plug-in's
    assert own - {"EPS"} <= found | {"BLP"}, "a format without a file"
    readable = []
    for name, content in FILES.items():
        (folder / "image").write_bytes(content)
        if not refused(result_or_refusal(read_image, folder / "image")):
            readable.append(name)
    kinds = {name.partition(" ")[0] for name in readable}
    assert len(readable) > 60 and len(kinds) >= 28


@examples(4)
@given(st.data())
def test_damaged_files(folder: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)), "kind")
    content = data.draw(damaged(FILES[name]), "content")
    path = folder / "image"
    path.write_bytes(content)
    found = explain(str(path), pipeline="cam")
    if not refused(found):
        with Image.open(path) as opened:
            assert tuple(found.map.shape) in {opened.size, opened.size[::-1]}
        assert found.input_image.image.mode == "RGB"


@examples()
@given(st.sampled_from(sorted(FILES)), st.sampled_from(sorted(FILES)), st.integers(0, 400), st.binary(max_size=30))
def test_files_of_two_halves(folder: Any, one: str, other: str, at: int, between: bytes) -> None:
    path = folder / "image.png"
    path.write_bytes(FILES[one][:at] + between + FILES[other][at:])
    found = result_or_refusal(read_image, path)
    assert refused(found) or found.image.mode == "RGB"
