"""Pictures: values as stored, and everything refused that would change meaning silently."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from toolkit.data.images import SUFFIXES, picture_shape, read_label_picture, read_pair, read_picture
from toolkit.data.source import FunctionSource
from toolkit.errors import DataError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.arange(144, dtype=np.uint8).reshape(6, 8, 3)


def source(image, *, label=None, classes=(0, 1), **options):
    files = {"images": (image,), "label": label, "suffixes": SUFFIXES}
    return FunctionSource(read=read_pair, **files, options=options, classes=classes)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def test_grey_colour_and_sixteen_bits_keep_their_values(tmp_path):
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "g.png", GREY))[0], GREY)
    colour = read_picture(saved(tmp_path / "c.png", COLOUR))
    np.testing.assert_array_equal(colour, np.moveaxis(COLOUR, -1, 0))
    deep = GREY.astype(np.uint16) * 1000
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "d.png", deep))[0], deep)
    assert picture_shape(tmp_path / "g.png") == (6, 8)


def test_colours_of_sixteen_bits_are_refused_where_pillow_would_cut_them(tmp_path):
    colours = np.random.default_rng(0).integers(0, 4096, (9, 7, 3)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 7, 9, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    tifffile.imwrite(tmp_path / "deep.tif", colours, photometric="rgb")
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(colours, -1, 0), photometric="rgb", planarconfig="separate")
    for name in ("deep.png", "deep.tif", "planar.tif"):
        with pytest.raises(DataError, match="colours of more than 8 bits"):
            read_picture(tmp_path / name)


def test_opaque_alpha_is_dropped_and_palettes_are_resolved(tmp_path):
    opaque = np.dstack([COLOUR, np.full((6, 8), 255, np.uint8)])
    np.testing.assert_array_equal(read_picture(saved(tmp_path / "a.png", opaque)), np.moveaxis(COLOUR, -1, 0))
    indexed = Image.fromarray((GREY % 3).astype(np.uint8), mode="L").convert("P")
    indexed.putpalette([0, 0, 0, 200, 0, 0, 0, 90, 0])
    indexed.save(tmp_path / "p.png")
    image = read_picture(tmp_path / "p.png")
    assert image.shape == (3, 6, 8)
    assert set(np.unique(image[0])) == {0, 200}


def test_palette_labels_are_their_numbers(tmp_path):
    label = Image.fromarray((GREY % 3).astype(np.uint8), mode="P")
    label.putpalette([9, 9, 9, 200, 0, 0, 0, 90, 0])
    label.save(tmp_path / "l.png")
    np.testing.assert_array_equal(read_label_picture(tmp_path / "l.png"), GREY % 3)


def test_channel_rule(tmp_path):
    label = saved(tmp_path / "l.png", (GREY > 20).astype(np.uint8))
    grey = source(saved(tmp_path / "g.png", GREY), label=label, channels=3, classes=(0, 1)).pair()
    assert grey.image.shape == (3, 6, 8)
    np.testing.assert_array_equal(grey.image[0], grey.image[2])
    equal = saved(tmp_path / "e.png", np.dstack([GREY] * 3))
    assert source(equal, label=label, channels=1, classes=(0, 1)).pair().image.shape == (1, 6, 8)


def test_numbered_objects_become_foreground(tmp_path):
    numbers = np.zeros((6, 8), np.uint16)
    numbers[1, 1], numbers[4, 5] = 7, 700
    label = saved(tmp_path / "n.png", numbers)
    reader = source(saved(tmp_path / "g.png", GREY), label=label, foreground=True, classes=(0, 1))
    np.testing.assert_array_equal(reader.read_raw().label, (numbers > 0).astype(np.uint8))


def bad_missing(path):
    return read_picture(path / "none.png")


def bad_folder(path):
    (path / "folder.png").mkdir()
    return read_picture(path / "folder.png")


def bad_empty(path):
    (path / "empty.png").touch()
    return read_picture(path / "empty.png")


def bad_truncated(path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    whole = saved(path / "whole.png", noise).read_bytes()
    (path / "cut.png").write_bytes(whole[: len(whole) // 2])
    return read_picture(path / "cut.png")


def bad_text(path):
    (path / "text.png").write_text("no picture")
    return read_picture(path / "text.png")


def bad_format(path):
    saved(path / "a.gif", GREY)
    (path / "a.gif").rename(path / "gif.png")
    return read_picture(path / "gif.png")


def bad_pages(path):
    page = Image.fromarray(GREY)
    page.save(path / "pages.tif", save_all=True, append_images=[page, page])
    return read_picture(path / "pages.tif")


def bad_transparent(path):
    alpha = np.dstack([COLOUR, GREY])
    return read_picture(saved(path / "half.png", alpha))


def bad_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    return read_picture(saved(path / "turned.jpg", COLOUR, exif=exif))


def bad_bomb(path):
    (path / "bomb.png").write_bytes(saved(path / "seed.png", GREY).read_bytes())
    data = bytearray((path / "bomb.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (path / "bomb.png").write_bytes(bytes(data))
    return read_picture(path / "bomb.png")


def bad_cmyk(path):
    return read_picture(saved(path / "print.jpg", COLOUR, "CMYK"))


def bad_label_jpeg(path):
    return read_label_picture(saved(path / "label.jpg", GREY))


def bad_label_colour(path):
    return read_label_picture(saved(path / "label.png", COLOUR))


def bad_label_values(path):
    label = saved(path / "mask.png", (GREY > 20).astype(np.uint8) * 255)
    reader = source(saved(path / "g.png", GREY), label=label, classes=(0, 1))
    return reader.read_raw()


def bad_label_size(path):
    label = saved(path / "small.png", (GREY[:3] > 20).astype(np.uint8))
    return source(saved(path / "g.png", GREY), label=label, classes=(0, 1)).read_raw()


def bad_channels(path):
    return source(saved(path / "c.png", COLOUR), channels=1, classes=(0, 1)).read_raw()


MESSAGES = {
    bad_missing: "does not exist",
    bad_folder: "not a file",
    bad_empty: "0 bytes",
    bad_truncated: "not a complete picture",
    bad_text: "not a complete picture",
    bad_format: "not a complete picture",
    bad_pages: "3 pages",
    bad_transparent: "partly transparent",
    bad_rotated: r"rotation tag \(6\)",
    bad_bomb: "not a complete picture|60000",
    bad_cmyk: "colour mode CMYK",
    bad_label_jpeg: "JPEG",
    bad_label_colour: "colour picture",
    bad_label_values: "0/255 mask",
    bad_label_size: r"\(6, 8\) and its label \(3, 8\)",
    bad_channels: "3 different channels",
}


@pytest.mark.parametrize("make", MESSAGES, ids=lambda make: make.__name__)
def test_bad_picture_is_refused(make, tmp_path):
    with pytest.raises(DataError, match=MESSAGES[make]) as caught:
        make(tmp_path)
    assert str(tmp_path) in caught.value.where
    assert len(caught.value.fix) > 10


def test_the_label_is_named_where_the_label_is_wrong(tmp_path):
    with pytest.raises(DataError) as caught:
        bad_label_values(tmp_path)
    assert caught.value.where == str(tmp_path / "mask.png")
    assert "label_values={0: 0, 255: 1}" in caught.value.fix


def test_a_folder_of_masks_is_one_label_with_numbered_objects(tmp_path):
    image, masks = saved(tmp_path / "i.png", COLOUR), tmp_path / "masks"
    masks.mkdir()
    for name, columns in (("b.png", slice(2, 6)), ("a.png", slice(0, 3))):  # they overlap in column 2
        mask = np.zeros((6, 8), np.uint8)
        mask[1:4, columns] = 255
        saved(masks / name, mask)
    (masks / "notes.txt").write_text("not a mask")
    reader = source(image, label=masks, foreground=True, classes=(0, 1))
    expected = np.zeros((6, 8), np.uint8)
    expected[1:4, 0:6] = 1
    np.testing.assert_array_equal(reader.read_raw().label, expected)
    assert reader.files() == (image, masks / "a.png", masks / "b.png")
    assert reader.where == f"{image}, {masks}"
    numbered = source(image, label=masks, classes=(0, 1, 2)).read_raw().label
    np.testing.assert_array_equal(numbered[1, :7], [1, 1, 1, 2, 2, 2, 0])
    before = reader.fingerprint()
    saved(masks / "c.png", np.eye(6, 8, dtype=np.uint8))
    assert source(image, label=masks).fingerprint() != before
    saved(masks / "d.png", GREY[:, :5])
    with pytest.raises(DataError, match="mask of an object"):
        reader.read_raw()
    for path in masks.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="holds no mask"):
        reader.read_raw()
