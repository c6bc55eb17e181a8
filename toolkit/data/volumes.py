"""NIfTI through nibabel; DICOM series, MetaImage and NRRD through SimpleITK: geometry is checked and kept, never guessed.

Volumes are read in the axes closest to right-anterior-superior, so the same volume gives the same array however its
axes are stored on disk; `Geometry` brings results back.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.geometry import LPS, Geometry, largest_shift
from toolkit.data.source import Arrays, checked_image, decoding, require_file
from toolkit.errors import ConfigError, DataError, library
from toolkit.files import replacing

__all__ = ["read_volume", "write_nifti"]
SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd")
_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_MOST_VOXELS = 2**33
_MOST_REST = 2**20
_WHAT = "a complete NIfTI volume"


def read_pair(
    images: tuple[Path, ...], label: Path | None, *, dims: int, frame: int | None = None, label_frame: int | None = None
) -> Arrays:
    """A volume of one file per channel, and its label; they must share one grid. In a 2D task slices come first.

    `frame` and `label_frame` choose one volume along the fourth axis of 4-D files; without `frame` the fourth axis of an
    image is its channels.
    """
    arrays, first = _channels(images[0], dims, frame)
    for path in images[1:]:
        channels, geometry = _channels(path, dims, frame)
        require_same_grid(first, geometry, images[0], path)
        arrays += channels
    if label is None:
        return np.stack(arrays), None
    stored, geometry = _load(label, dims, label_frame)
    require_same_grid(first, geometry, images[0], label)
    return np.stack(arrays), geometry.arrange(_numbers(stored, label))


def read_volume(path: str | os.PathLike[str], dims: int = 3, frame: int | None = None) -> tuple[np.ndarray, Geometry]:
    """Read one NIfTI volume as float32 (*S) in the axes closest to right-anterior-superior.

    Args:
        path: `.nii` or `.nii.gz`.
        dims: 2 puts the slice axis first: the axis with the largest spacing, or superior if all are equal.
        frame: which volume of a 4-D file.

    Raises:
        DataError: missing, empty, truncated or foreign file; more than three axes; conflicting or singular
            geometry; complex or colour voxels; NaN or infinite voxels; one value everywhere.
    """
    path = Path(path)
    image, geometry = _load(path, dims, frame)
    array = checked_image(geometry.arrange(_numbers(image, path)), str(path))
    if array.size > 1 and array.min() == array.max():
        fix = "The export failed: export the image again."
        raise DataError(f"Every voxel is {array.flat[0]:g}.", where=path, fix=fix)
    return array, geometry


def _channels(path: Path, dims: int, frame: int | None) -> tuple[list[np.ndarray], Geometry]:
    """The volumes along the fourth axis of a file, or its one volume."""
    count = volumes_in(path) if frame is None else 1
    if count == 1:
        array, geometry = read_volume(path, dims, frame)
        return [array], geometry
    geometry = _load(path, dims, 0, voxels=False)[1]
    voxels = _numbers(_opened(path, voxels=True), path, axes=4)
    channels = [checked_image(geometry.arrange(voxels[..., index]), str(path)) for index in range(count)]
    return channels, geometry


def volumes_in(path: Path) -> int:
    """Volumes along the fourth axis of a file, 1 of a 3-D one."""
    shape = _opened(path).shape
    return int(shape[3]) if len(shape) == 4 else 1


def read_geometry(path: str | os.PathLike[str], dims: int = 3, frame: int | None = None) -> Geometry:
    """Read and check the header alone."""
    return _load(Path(path), dims, frame, voxels=False)[1]


def geometry_of(
    stored: np.ndarray, shape: tuple[int, ...], path: Path, dims: int, *, codes: tuple[int, int] = (1, 1), scale: float
) -> Geometry:
    """Geometry of a volume, in the axes closest to right, anterior, superior, by its voxel-to-world matrix."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    _check_shape(shape, path)
    stored, volume = np.asarray(stored, dtype=np.float64), (*shape, 1, 1)[:3]
    lengths = np.linalg.norm(stored[:3, :3], axis=0)
    flat = abs(np.linalg.det(stored[:3, :3])) < 1e-9 * max(float(lengths.prod()), 1e-30)
    if flat or not np.isfinite(stored).all():
        what = "The header's affine is singular or not finite: it maps the volume to a plane or to nowhere."
        raise DataError(what, where=path, fix="Restore the affine from the original image.")
    orientation = io_orientation(stored)
    axes = tuple(int(axis) for axis in orientation[:, 0])
    flips = tuple(bool(direction < 0) for direction in orientation[:, 1])
    affine = stored @ inv_ornt_aff(orientation, volume)
    affine[:3] *= scale
    as_read = tuple(volume[stored_axis] for stored_axis in np.argsort(axes))
    spacing = tuple(float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return Geometry(affine, as_read, spacing, stored, shape, axes, flips, codes, scale).for_dims(dims)


def write_nifti(
    path: str | os.PathLike[str],
    array: np.ndarray,
    geometry: Geometry | None = None,
    *,
    affine: np.ndarray | None = None,
    spacing: tuple[float, ...] | None = None,
    description: str = "",
) -> Path:
    """Write a volume atomically, in the axes, shape and coordinates of the file that `geometry` was read from.

    Args:
        path: `.nii` or `.nii.gz`.
        array: (*S) in the axes as read (a stack with slices first in a 2D task); bool becomes uint8, int64 the
            smallest integer type that holds it, float64 float32.
        geometry: of the image it belongs to.
        affine: voxel-to-world matrix in mm, where there is no geometry.
        spacing: mm, where there is neither; None writes a header that says that the geometry is unknown.
        description: at most 79 characters of the header's `descrip`.

    Raises:
        ConfigError: another suffix.
        DataError: the array does not fit the geometry.
    """
    import nibabel

    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ConfigError(f"{path.name!r} is not a NIfTI name.", fix="End it in .nii.gz or .nii.")
    data = geometry.restore(array) if geometry is not None else np.asarray(array)
    if data.dtype == np.bool_:
        data = data.astype(np.uint8)
    elif data.dtype.kind in "iu" and data.dtype.itemsize > 4:
        least, most = int(data.min(initial=0)), int(data.max(initial=0))
        data = data.astype(np.min_scalar_type(most if least >= 0 else least))
    elif data.dtype in (np.float64, np.float16):
        data = data.astype(np.float32)
    matrix = geometry.stored_affine if geometry is not None else affine
    image = nibabel.Nifti1Image(data, matrix)
    codes = geometry.codes if geometry is not None else (1, 1) if affine is not None else (0, 0)
    unit = {1000.0: "meter", 0.001: "micron"}.get(geometry.unit if geometry else 1.0, "mm")
    if matrix is not None:
        image.set_sform(matrix, code=codes[1])
        image.set_qform(matrix if codes[0] else None, code=codes[0])
    voxel = geometry.spacing if geometry is not None else spacing
    if matrix is None and voxel is not None:
        stored = voxel if geometry is None else [voxel[axis] / geometry.unit for axis in geometry.axes]
        image.header.set_zooms(tuple(stored)[: data.ndim] + (1.0,) * (data.ndim - 3))
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.header.set_xyzt_units(unit if matrix is not None or voxel is not None else 0)
    with replacing(path, parents=True) as temporary:
        nibabel.save(image, temporary)
    return path


def require_same_grid(first: Geometry, second: Geometry, image: Path, other: Path) -> None:
    """Check that two files lie on one grid (shape, and corners within a tenth of a voxel)."""
    fix, what = "Resample the second onto the grid of the first (labels with nearest-neighbour interpolation).", ""
    if first.shape != second.shape or first.stored_shape[:3] != second.stored_shape[:3]:
        what = f"Two files of one case have different shapes: {first.stored_shape} and {second.stored_shape}."
    elif (first.affine is None) != (second.affine is None):
        what = "One file of the case says where it lies in the world, the other does not."
    elif first.affine is None or second.affine is None:
        if first.spacing != second.spacing:
            what = f"Voxel spacings differ: {first.spacing} and {second.spacing} mm."
    else:
        shift, mm = largest_shift(first.affine, second.affine, first.shape), first.spacing
        if shift > 0.1 * min(mm or (1.0,)) or first.axes != second.axes or first.flips != second.flips:
            what = f"Two files of one case lie at different places: up to {shift:.3g} mm apart (spacing {mm} mm)."
            fix += " If only the header is wrong, copy the image's affine to the other file."
    if what:
        raise DataError(what, where=f"{image} and {other}", fix=fix)


def _load(path: Path, dims: int, frame: int | None = None, voxels: bool = True) -> tuple[Any, Geometry]:
    """The nibabel image and its checked geometry; without `voxels` of the header alone."""
    image = _opened(path, voxels)
    with decoding(path, _WHAT):
        header = image.header
        codes = int(header["qform_code"]), int(header["sform_code"])
        forms = header.get_qform(), header.get_sform()
        unit = header.get_xyzt_units()[0]
    if frame is not None:
        if len(image.shape) != 4 or not 0 <= frame < image.shape[3]:
            what = f"Frame {frame} was asked for, but the file has the shape {tuple(image.shape)}."
            raise DataError(what, where=path, fix="The table of the data set and the file disagree: get both again.")
        image = image.slicer[..., frame]  # its voxels stay unread
    shape, scale = tuple(int(side) for side in image.shape), _MM.get(unit, 1.0)
    _check_shape(shape, path)
    mm = tuple(float(zoom) * scale for zoom in (*header.get_zooms()[:3], 1.0, 1.0)[:3])
    if not all(0 < value < float("inf") for value in mm):
        raise DataError(f"The header gives a voxel size of {mm} mm.", where=path, fix="Correct the header.")
    if max(codes) <= 0:
        # Codes 0, no unit and size 1 is what a program writes that knew nothing; anything else is a statement.
        stated = None if unit == "unknown" and mm == (1.0, 1.0, 1.0) else mm
        unplaced = Geometry(None, (*shape, 1, 1)[:3], stated, None, shape, codes=codes, unit=scale)
        return image, unplaced.for_dims(dims)
    geometry = geometry_of(forms[1] if codes[1] > 0 else forms[0], shape, path, dims, codes=codes, scale=scale)
    shift = largest_shift(forms[0], forms[1], (*shape, 1, 1)) if min(codes) > 0 else 0.0
    if shift > 0.1 * min(geometry.spacing or mm) / scale:
        what = f"The header's q-form and s-form disagree by up to {shift:.3g} mm: programs will read this file differently."
        fix = "Decide which is right and write it to both (nibabel: image.set_qform(affine, 1); "
        raise DataError(what, where=path, fix=f"{fix}image.set_sform(affine, 1)), then save.")
    return image, geometry


def _opened(path: Path, voxels: bool = False) -> Any:
    """The nibabel image; with `voxels` a compressed file is read to its end, where gzip's checksum stands."""
    import nibabel

    require_file(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError("This is not a NIfTI file name.", where=path, fix="Convert it to .nii.gz.")
    with decoding(path, _WHAT):
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise ValueError(f"it is a {type(image).__name__}")
        if voxels and path.name.lower().endswith(".gz"):
            proxy: Any = image.dataobj
            size = proxy.offset + image.get_data_dtype().itemsize * int(np.prod(image.shape, dtype=np.int64))
            with gzip.open(path) as stream:
                content = stream.read(int(size))
                if len(stream.read(_MOST_REST)) == _MOST_REST:
                    raise ValueError("the file goes on behind its voxels")
            image = type(image).from_bytes(content)
    return image


def _check_shape(shape: tuple[int, ...], path: Path) -> None:
    if len(shape) > 3 and max(shape[3:]) == 1:
        shape = shape[:3]
    if not 2 <= len(shape) <= 3:
        fix = "Save one 3D file per time point, or one per channel (case_0000.nii.gz, case_0001.nii.gz)."
        raise DataError(f"The file has {len(shape)} axes: {shape}.", where=path, fix=fix)
    if min(shape) < 1 or int(np.prod(shape, dtype=np.int64)) > _MOST_VOXELS:
        raise DataError(f"The header gives the shape {shape}.", where=path, fix="The header is damaged.")


def _numbers(image: Any, path: Path, axes: int = 3) -> np.ndarray:
    """The stored voxels with the header's scaling, in the smallest exact type."""
    kind = image.get_data_dtype()
    if kind.kind not in "buif":
        what = "colour" if kind.fields else str(kind)
        fix = "Save one number per voxel (colour: one file per channel)."
        raise DataError(f"The file holds {what} voxels.", where=path, fix=fix)
    with decoding(path, _WHAT):
        array = np.asanyarray(image.dataobj)
    return array.reshape(array.shape[:axes])


def read_itk_pair(images: tuple[Path, ...], label: Path | None, *, dims: int = 3) -> Arrays:
    """A volume that SimpleITK reads (a file, or the folder of one DICOM series), and its label; they share one grid."""
    array, geometry = read_itk(images[0], dims)
    image = checked_image(array, str(images[0]))[None]
    if label is None:
        return image, None
    stored, other = read_itk(label, dims)
    require_same_grid(geometry, other, images[0], label)
    return image, stored


def read_itk(path: Path, dims: int = 3) -> tuple[np.ndarray, Geometry]:
    """Read one volume in the axes closest to right, anterior, superior (slices first if `dims` is 2)."""
    itk = library("SimpleITK", "DICOM series, MetaImage (.mhd, .mha) and NRRD files need")
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    check_compressed(path)
    try:
        image = _series(itk, path) if path.is_dir() else itk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][-160:] if str(error).strip() else "no text"
        fix = "It is missing, truncated, damaged or of another format: copy or export it again."
        raise DataError(f"SimpleITK cannot read this ({reason}).", where=path, fix=fix) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        what = f"The image has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} channels."
        raise DataError(what, where=path, fix="Save one number per voxel and one 3D file per time point.")
    stored = np.transpose(itk.GetArrayFromImage(image))  # to x, y, z, as NIfTI stores it
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    geometry = geometry_of(LPS @ affine, stored.shape, path, dims, scale=1.0)
    return geometry.arrange(stored), geometry


def check_compressed(path: Path) -> None:
    """Read the compressed voxels of MetaImage and NRRD to the end of their stream, whose checksum ITK does not look at."""
    if not path.is_file() or not path.name.lower().endswith(ITK_SUFFIXES):
        return
    content = path.read_bytes()
    with decoding(path, "complete: its compressed voxels are damaged", "Copy or export it again."):
        if path.suffix.lower() == ".nrrd":
            header, _, voxels = content.partition(b"\n\n")
            if re.search(rb"^encoding: gz(ip)?\s*$", header, re.MULTILINE):
                gzip.decompress(voxels)
            return
        entry = re.search(rb"^ElementDataFile\s*=\s*(.+?)\r?\n", content, re.MULTILINE)
        if entry and re.search(rb"^CompressedData\s*=\s*True\s*$", content[: entry.end()], re.MULTILINE):
            name = entry[1].decode()
            voxels = content[entry.end() :] if name == "LOCAL" else path.with_name(Path(name).name).read_bytes()
            stream = zlib.decompressobj()
            stream.decompress(voxels)
            if not stream.eof:
                raise EOFError("the compressed stream ends early")


def _series(itk: Any, folder: Path) -> Any:
    series = itk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        what = f"The folder holds {len(series)} DICOM series."
        raise DataError(what, where=folder, fix="Keep one series in a folder.")
    names = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    # Slices must follow each other at one distance: a missing slice would stretch the anatomy silently.
    positions = []
    for name in names:
        header = itk.ImageFileReader()
        header.SetFileName(name)
        header.ReadImageInformation()
        positions.append(header.GetOrigin())
    steps = np.linalg.norm(np.diff(np.asarray(positions), axis=0), axis=1)
    if len(steps) and steps.max() - steps.min() > 0.05 * max(float(np.median(steps)), 1e-6):
        what = f"Neighbouring slices are {steps.min():.3g} to {steps.max():.3g} mm apart."
        raise DataError(what, where=folder, fix="A slice is missing or there twice: export the series again.")
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(names)
    return reader.Execute()
