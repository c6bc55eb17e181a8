"""PNG and similar pictures through Pillow, with everything refused that would change meaning silently."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from toolkit.data.source import Arrays, decoding, require_file
from toolkit.errors import DataError
from toolkit.files import replacing

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
_FORMATS = ("PNG", "TIFF", "BMP", "JPEG")
_DECODED = "a complete picture", f"It is truncated, damaged or of another format; readable are {', '.join(_FORMATS)}."
_MOST_PIXELS = 2**28
_MOST_XML = 2**28  # bytes
_ORIENTATION_TAG, _BITS_TAG = 0x0112, 0x0102


def read_pair(
    images: tuple[Path, ...],
    label: Path | None,
    *,
    channels: int | None = None,
    foreground: bool = False,
    threshold: int | None = None,
    background: bool = False,
) -> Arrays:
    """A picture (C, H, W), and its label (H, W) from a picture, outlines in XML or a folder of a mask an object.

    Every image is brought to `channels` (1 or 3; grey is repeated, equal colours are merged). Label values from
    `threshold` on (mean of the colours; for soft, 0/255 and JPEG masks), or above 0 (`foreground`, for numbered objects),
    are class 1, the rest is class 0; `background` stands for a label that has no file.
    """
    image = read_picture(images[0])
    if channels == 1 and (image == image[:1]).all():
        image = image[:1]
    elif channels is not None and len(image) == 1:
        image = np.broadcast_to(image, (channels, *image.shape[1:]))  # a view, which takes no memory
    if channels not in (None, len(image)):
        what = f"The image has {len(image)} different channels where {channels} is wanted."
        raise DataError(what, where=images[0], fix="Convert it, or declare three channels for the task.")
    shape = (int(image.shape[1]), int(image.shape[2]))
    if label is None:
        return image, np.zeros(shape, np.uint8) if background else None
    if label.suffix.lower() == ".xml":
        stored = read_polygons(label, shape)
    elif label.is_dir():
        stored = _objects(label, shape)
    elif threshold is not None:
        stored = (read_picture(label).mean(axis=0) >= threshold).astype(np.uint8)
    else:
        stored = read_label_picture(label)
    return image, (stored > 0).astype(np.uint8) if foreground else stored


def _objects(folder: Path, shape: tuple[int, int]) -> np.ndarray:
    """Objects, numbered in the order of their pictures' names; where two overlap the first one counts."""
    label = np.zeros(shape, np.int32)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError("The folder holds no mask.", where=folder, fix="Complete it, or move the image away.")
    for number, path in enumerate(files, start=1):
        mask = read_label_picture(path)
        if mask.shape != shape:
            what = f"The image has shape {shape} and the mask of an object {mask.shape}."
            raise DataError(what, where=path, fix="Get the file again, or move the image away.")
        label[(mask > 0) & (label == 0)] = number
    return label


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture (C, H, W) as stored (8, 16, 32 bits), palettes as colours and without an opaque alpha channel."""
    array = _decoded(Path(path), palette=False)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def read_label_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a label picture (H, W): grey values, or palette numbers as they are."""
    path = Path(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        what = "A label is stored as JPEG, which changes values at edges."
        raise DataError(what, where=path, fix="Export labels as PNG.")
    array = _decoded(path, palette=True)
    if array.ndim == 3:
        if (array != array[..., :1]).any():
            fix = "Save class numbers 0, 1, 2, ... in one channel."
            raise DataError("The label is a colour picture.", where=path, fix=fix)
        array = array[..., 0]
    return array


def write_label_picture(path: str | os.PathLike[str], label: np.ndarray) -> Path:
    """Write class indices (H, W) as a grey PNG, 8 bits or, from 256 classes on, 16."""
    from PIL import Image

    path, label = Path(path), np.asarray(label)
    if label.ndim != 2 or label.dtype.kind not in "bui" or label.min(initial=0) < 0 or label.max(initial=0) > 65535:
        raise DataError(f"A label of shape {label.shape} and type {label.dtype} is no picture.", where=path)
    with replacing(path, parents=True) as temporary:
        Image.fromarray(label.astype(np.uint8 if label.max(initial=0) < 256 else np.uint16)).save(temporary, "PNG")
    return path


def picture_shape(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Rows and columns, from the header."""
    from PIL import Image

    path = Path(path)
    require_file(path)
    with decoding(path, *_DECODED), Image.open(path, formats=_FORMATS) as picture:
        return picture.height, picture.width


def _decoded(path: Path, *, palette: bool) -> np.ndarray:
    from PIL import Image

    require_file(path)
    with decoding(path, *_DECODED), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as picture:
            if (pages := getattr(picture, "n_frames", 1)) > 1:
                what = f"The file holds {pages} pages."
                raise DataError(what, where=path, fix="Save each page as its own file, or the stack as NIfTI.")
            if picture.width * picture.height > _MOST_PIXELS:
                what = f"The picture has {picture.width} x {picture.height} pixels."
                raise DataError(what, where=path, fix="Cut it into tiles.")
            deep = ";16" in str(picture.tile[:1]) or max(getattr(picture, "tag_v2", {}).get(_BITS_TAG, (8,))) > 8
            if deep and picture.mode in ("RGB", "RGBA", "LA"):  # which Pillow would cut
                fix = "Scale it to 8 bits a colour, or pass its array to toolkit.task_from_arrays."
                raise DataError("The picture has colours of more than 8 bits.", where=path, fix=fix)
            if (turned := picture.getexif().get(_ORIENTATION_TAG, 1)) != 1:
                what = f"The picture carries a rotation tag ({turned}) that viewers follow and label files do not."
                raise DataError(what, where=path, fix="Save it upright without it (Pillow: ImageOps.exif_transpose).")
            picture.load()
            resolved: Image.Image = picture
            if picture.mode in ("P", "PA") and not palette:
                resolved = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
            array, mode = np.array(resolved), resolved.mode
    if mode in ("RGBA", "LA", "PA"):
        if (array[..., -1] != array[..., -1].flat[0]).any():
            raise DataError("The picture is partly transparent.", where=path, fix="Flatten it onto a background first.")
        array = array[..., :-1]
        array = array[..., 0] if array.shape[-1] == 1 else array
    elif mode not in ("1", "L", "P", "I", "F", "RGB") and not mode.startswith("I;16"):
        raise DataError(f"The picture has the colour mode {mode}.", where=path, fix="Convert it to grey or RGB.")
    return array.astype(np.uint8) if array.dtype == np.bool_ else array


def read_polygons(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Objects (H, W) as uint16 of outlines in XML (Aperio ImageScope, as MoNuSeg has them); of two the first one holds.

    A pixel belongs to an outline if its centre is inside by the even-odd rule; the centre of the first pixel has the
    coordinates (0.5, 0.5).
    """
    require_file(path, _MOST_XML)
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content or b"\x00" in content:
        what = "The XML file declares a document type or entities, which outlines do not need and which are unsafe."
        raise DataError(what, where=path, fix="Take the file as it was published.")
    with decoding(path, "an XML file of outlines", "Take the file as it was published."):
        root = ElementTree.fromstring(content)
        outlines = [
            np.asarray([(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")])
            for region in root.iter("Region")
        ]
    if not outlines:
        raise DataError("The XML file has no regions.", where=path, fix="Check that it belongs to the image.")
    objects, reach = np.zeros(shape, np.uint16), np.asarray((shape[1], shape[0]))
    for number, outline in enumerate(outlines, start=1):
        if len(outline) < 3 or not np.isfinite(outline).all():
            what = f"Region {number} has {len(outline)} corners or corners that are no numbers."
            raise DataError(what, where=path, fix="Take the file as it was published.")
        # Annotators click a little beyond the border; a whole picture further is another picture's file.
        if (outline < -reach).any() or (outline > 2 * reach).any() or number > np.iinfo(np.uint16).max:
            what = f"Region {number} lies outside the picture of {shape[0]} x {shape[1]} pixels."
            raise DataError(what, where=path, fix="The outlines belong to another picture.")
        rows, columns, inside = fill(outline, shape)
        window = objects[rows, columns]
        window[inside & (window == 0)] = number
    return objects


def fill(outline: np.ndarray, shape: tuple[int, int]) -> tuple[slice, slice, np.ndarray]:
    """Pixels whose centre is inside an outline (n, 2) of x, y: a window of rows and columns, and its mask."""
    low = np.clip(np.floor(outline.min(axis=0)), 0, (shape[1], shape[0])).astype(int)
    high = np.clip(np.ceil(outline.max(axis=0)), 0, (shape[1], shape[0])).astype(int)
    rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
    y = np.arange(low[1], high[1])[:, None] + 0.5
    x = np.arange(low[0], high[0])[None, :] + 0.5
    inside = np.zeros((y.size, x.size), bool)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return rows, columns, inside
