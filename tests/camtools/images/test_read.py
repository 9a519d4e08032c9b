"""Every kind of image in, by value; every way it can be wrong, by message."""

import io

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from camtools.errors import CamtoolsError, InputError
from camtools.images import ImageBytes
from camtools.images.read import read_image, read_images

RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [128, 64, 32], [255, 255, 255]]], np.uint8)


def pixels(x):
    image = read_image(x)
    assert image.tensor is None
    assert image.image.mode == "RGB"
    assert image.size == (image.image.height, image.image.width)
    return np.asarray(image.image).tolist()


def grey(*rows):
    return [[[v, v, v] for v in row] for row in rows]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(RGB).save(path)
    return path


def test_every_way_to_give_the_same_image(path):
    tensor = torch.from_numpy(RGB).permute(2, 0, 1)
    same = [path, str(path), Image.fromarray(RGB), RGB, RGB / 255, (RGB / 255).astype(np.float16), tensor]
    same += [RGB.astype(np.uint16) * 257, RGB[::-1][::-1], RGB.astype(">u2") * np.array(257, ">u2")]
    same += [np.dstack([RGB, np.full((2, 3), 255, np.uint8)])]
    for x in same:
        assert pixels(x) == RGB.tolist()
    assert read_image(path).source == str(path)
    assert read_image(Image.open(path)).source == str(path)
    assert read_image(RGB).source is None
    assert read_image(path).size == (2, 3)


def test_grey_arrays_and_tensors():
    values = np.array([[0, 51, 255]], np.uint8)
    for x in (values, values[..., None], values / 255, torch.from_numpy(values)[None], values.astype(np.uint16) * 257):
        assert pixels(x) == grey([0, 51, 255])
    assert pixels(np.array([[True, False]])) == grey([255, 0])
    assert pixels(np.array([[65535, 32768, 128, 129]], np.uint16)) == grey([255, 128, 0, 1])
    assert pixels(np.array([[1.0005, -0.0005]], np.float32)) == grey([255, 0])


def test_transparency_is_composited_over_white():
    rgba = np.array([[[255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 51]]], np.uint8)
    white_black_grey = grey([255, 0, 204])
    assert pixels(rgba) == white_black_grey
    assert pixels(torch.from_numpy(rgba).permute(2, 0, 1)) == white_black_grey
    assert pixels(Image.fromarray(rgba)) == white_black_grey
    assert pixels(Image.fromarray(rgba).convert("LA")) == white_black_grey
    assert pixels(Image.fromarray(rgba).convert("RGBa")) == white_black_grey
    assert pixels(Image.fromarray(rgba).convert("LA").convert("La"))[0][0] == [255, 255, 255]


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(image) == [[[10, 20, 30], [200, 100, 50]]]
    image.info["transparency"] = 0
    assert pixels(image) == [[[255, 255, 255], [200, 100, 50]]]


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "I", "F", "I;16"]
)
def test_every_mode_of_pil(mode):
    source = Image.new("L", (3, 2), 255)
    image = source.convert(mode) if mode not in ("I;16", "PA") else Image.new(mode, (3, 2))
    expected = {"I;16": 0, "PA": 255}.get(mode, 255)
    assert np.abs(np.array(pixels(image)) - expected).max() <= (2 if mode == "YCbCr" else 0)


def test_deep_images_are_scaled_not_clipped(tmp_path):
    deep = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    expected = grey([0, 0, 1, 128, 255])
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        assert pixels(tmp_path / name) == expected
    assert pixels(Image.fromarray(deep.astype(np.int32))) == expected
    assert pixels(Image.fromarray(deep.astype(np.float32))) == expected
    assert pixels(Image.fromarray(np.array([[0, 255, 100]], np.int32))) == grey([0, 255, 100])
    assert pixels(Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32))) == grey([0, 51, 255])
    assert pixels(Image.fromarray(np.array([[0.0, 51, 255]], np.float32))) == grey([0, 51, 255])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    upright = Image.fromarray(RGB)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that makes what is stored
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "rotated.png", exif=exif)
    assert pixels(tmp_path / "rotated.png") == RGB.tolist()
    assert pixels(Image.open(tmp_path / "rotated.png")) == RGB.tolist()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_passed_over(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "exif.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12")
    assert read_image(tmp_path / "exif.jpg").size == (2, 3)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 2), colour) for colour in ("red", "lime")]
    for name in ("moving.gif", "moving.webp", "moving.tif"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert pixels(tmp_path / name)[0][0] == [255, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_are_ready_and_left_alone(dtype):
    tensor = torch.full((3, 4, 5), -2.5, dtype=dtype)
    image = read_image(tensor, channels=3)
    assert image.tensor is tensor
    assert image.image is None
    assert image.size == (4, 5)
    assert read_image(torch.zeros(7, 4, 5)).size == (4, 5)


def test_the_callers_image_is_left_alone():
    image = Image.fromarray(RGB)
    assert read_image(image).image is not image
    array = RGB.copy()
    input_image = read_image(array)
    array[:] = 7
    assert np.asarray(input_image.image).tolist() == RGB.tolist()


def test_one_or_many(path):
    for x in (path, str(path), RGB, Image.fromarray(RGB), torch.zeros(3, 4, 5)):
        images, single = read_images(x)
        assert (len(images), single) == (1, True)
    batches = [[path], (path, RGB), torch.zeros(1, 3, 4, 5), np.zeros((4, 2, 3, 3), np.uint8), torch.zeros(2, 3, 4, 5)]
    for x, count in zip(batches, (1, 2, 1, 4, 2), strict=True):
        images, single = read_images(x)
        assert (len(images), single) == (count, False)
        assert len(list(images)) == count
    batch = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(read_images(batch)[0][-1].tensor, batch[1])


def test_paths_stay_lazy_and_keep_their_index(path):
    images, _ = read_images([path, *(f"missing_{i}.png" for i in range(1, 10_000))])
    assert len(images) == 10_000
    assert images[0].size == (2, 3)
    assert repr(images) == "<InputImages: 10000, read when asked for>"
    with pytest.raises(InputError, match=r"image 42 \('missing_42.png'\) does not exist"):
        images[40:50][2]
    assert len(images[::2]) == 5_000
    with pytest.raises(IndexError):
        images[10_000]


WRONG = [
    ("missing.png", r"\('missing.png'\) does not exist: expected the path"),
    ("https://example.org/cat.jpg", "URLs are not fetched"),
    (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\), without pixels: expected at least 1 x 1"),
    (Image.new("RGB", (0, 5)), r"no pixels \(height 5, width 0\)"),
    (torch.zeros(3, 0, 4), r"shape \(3, 0, 4\), without pixels"),
    (torch.full((3, 2, 2), float("nan")), "12 NaN or infinite values of 12.*nan_to_num"),
    (np.array([[0.0, np.inf]]), "1 NaN or infinite values of 2"),
    (np.zeros((5, 6, 2), np.uint8), "2 channels: expected 1, 3 or 4, channels last. Select"),
    (np.zeros((3, 4, 5), np.uint8), r"5 channels: .* array.transpose\(1, 2, 0\)"),
    (torch.zeros(5, 4, 4, dtype=torch.uint8), "5 channels: expected 1, 3 or 4, channels first"),
    (torch.zeros(4, 5, 3), r"4 channels: expected 3, as the model takes.*tensor.permute\(2, 0, 1\)"),
    (torch.zeros(1, 5, 6), "1 channels: expected 3, as the model takes.*Select or repeat"),
    (torch.zeros(5, 6), r"shape \(5, 6\): expected one image, \(C, H, W\).*unsqueeze"),
    (torch.zeros(1, 1, 3, 4, 4), r"shape \(1, 1, 3, 4, 4\).*batch \(B, C, H, W\)"),
    (np.zeros(7, np.uint8), r"shape \(7,\): expected one image"),
    (np.zeros((4, 4), np.int64), r"dtype int64: expected uint8, uint16, bool, or float.*astype\(np.uint8\)"),
    (torch.zeros(3, 4, 4, dtype=torch.int32), r"dtype torch.int32: expected uint8 .*tensor.to\(torch.uint8\)"),
    (np.full((2, 2, 3), 255.0), r"from 255 to 255: expected \[0, 1\]. Divide by 255 .* torch tensor"),
    (np.full((2, 2, 3), -0.5), r"from -0.5 to -0.5: expected \[0, 1\]"),
    (Image.fromarray(np.array([[-1, 5]], np.int32)), r"mode 'I' with values from -1 to 5: expected \[0, 65535\]"),
    (Image.fromarray(np.array([[np.nan, 5]], np.float32)), "mode 'F' with values from nan"),
    (7, "the image is of type int: expected a path, a PIL image"),
    (None, "of type NoneType"),
    (b"bytes", "is no image that can be read|not an image|is truncated"),
    (ImageBytes(b"bytes", "shard.tar/7.png"), "the image \\('shard.tar/7.png'\\)"),
    ("memory://nowhere/7.png", "cannot be read from its store .FileNotFoundError"),
    ("nostore://x/7.png", "cannot be read from its store .*Protocol not known"),
    ({"image": 1}, "of type dict"),
]


@pytest.mark.parametrize(("x", "message"), WRONG, ids=[m[:30] for _, m in WRONG])
def test_errors(x, message):
    with pytest.raises(InputError, match=message) as caught:
        read_images(x, channels=3)[0][0]
    assert isinstance(caught.value, CamtoolsError | ValueError)
    assert "the image" in str(caught.value)
    with pytest.raises(InputError, match=r"image 1[ (]"):
        read_images([RGB, x], channels=3)[0][1]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([], "an empty list: expected at least one image"),
        ((), "an empty tuple"),
        (torch.zeros(0, 3, 4, 4), r"an empty Tensor of shape \(0, 3, 4, 4\)"),
        (iter([RGB]), r"an iterator.*list\(...\).*Explainer.stream"),
    ],
)
def test_nothing_to_read(x, message):
    with pytest.raises(InputError, match=message):
        read_images(x)


def test_files_that_are_none(tmp_path, path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:2000])
    for name, message in {
        "": "is a directory: expected an image file.*glob",
        "empty.jpg": r"is an empty file \(0 bytes\)",
        "text.jpg": "is not an image, or of a kind Pillow does not know",
        "cut.jpg": "is truncated or damaged .*Copy or download it again",
        "image.png/inside.png": "does not exist",
        "nul\0.png": "cannot be opened",
    }.items():
        with pytest.raises(InputError, match=message):
            read_image(f"{tmp_path}/{name}")


def test_a_closed_pil_image(path):
    image = Image.open(path)
    image.close()
    with pytest.raises(InputError, match=r"image.png'\) is truncated or damaged .*convert it to RGB yourself"):
        read_image(image)


def test_decompression_bombs(path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(InputError, match=r"too large to open safely .*MAX_IMAGE_PIXELS"):
        read_image(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_whatever_is_in_a_file_is_an_image_or_an_input_error(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # a damaged header may claim gigabytes
    generator = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, kind)
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    file = tmp_path / "fuzzed"
    for trial in range(60):
        data = whole[: generator.integers(1, len(whole))].copy() if trial % 2 else whole.copy()
        data[generator.integers(0, min(len(data), 80), 3)] = generator.integers(0, 256, 3)
        file.write_bytes(data.tobytes())
        try:
            assert read_image(file).image.mode == "RGB"
        except InputError as error:
            assert "the image" in str(error)


def test_whatever_a_decoder_raises_is_an_input_error(tmp_path, monkeypatch):
    file = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(file)
    for error in (
        RuntimeError("plug-in"),
        AssertionError("x"),
        ZeroDivisionError(),
        AttributeError("y"),
        MemoryError(),
    ):

        def fail(self, error=error):
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        with pytest.raises(InputError, match=r"x\.png'\) (is truncated or damaged|does not fit into memory)"):
            read_image(file)


def test_more_pixels_than_pillow_trusts_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    file = tmp_path / "x.png"
    Image.new("1", (300, 200)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(InputError, match=r"has 300 x 200 pixels: expected at most 50,000"),
    ):
        read_image(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(file).size == (200, 300)


def test_a_home_that_nobody_has():
    with pytest.raises(InputError, match=r"cannot be opened|does not exist"):
        read_image("~nobody-at-all/x.png")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4, 4).to_sparse(),
        torch.zeros(3, 4, 4, device="meta"),
        torch.nested.nested_tensor([torch.zeros(4, 4), torch.zeros(2, 2)]),
    ],
    ids=["sparse", "meta", "nested"],
)
def test_tensors_without_values_at_hand(tensor):
    with pytest.raises(
        InputError, match=r"the image is a sparse, nested, quantized or meta tensor: expected one with its values"
    ):
        read_image(tensor)


def test_a_tensor_of_eight_bit_floats():
    with pytest.raises(InputError, match=r"dtype torch.float8_e5m2: expected float16 or wider"):
        read_image(torch.zeros(3, 4, 4).to(torch.float8_e5m2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_rounded_to_the_nearest_level(dtype):
    array = np.linspace(0, 1, 257, dtype=dtype)[None, :, None]
    levels = np.asarray(read_image(array).image)[0, :, 0]
    assert np.abs(levels - 255 * array[0, :, 0].astype(np.float64)).max() <= 0.5


def test_bytes_and_stores_give_what_the_file_gives(tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    data = (tmp_path / "turned.jpg").read_bytes()
    fsspec.filesystem("memory").pipe("/photos/turned.jpg", data)
    of_file = read_image(tmp_path / "turned.jpg")
    for x, source in (
        (data, None),
        (ImageBytes(data, "birds.tar/turned.jpg"), "birds.tar/turned.jpg"),
        ("memory://photos/turned.jpg", "memory://photos/turned.jpg"),
    ):
        image = read_image(x)
        assert image.source == source and image.size == (80, 60)
        assert np.array_equal(np.asarray(image.image), np.asarray(of_file.image))
    assert read_image("memory://photos/turned.jpg", least=lambda _: (20, 15)).image.size == (15, 20)
    assert read_image(data, least=lambda _: (20, 15)).image.size == (60, 80)  # nowhere to read the rest from later
