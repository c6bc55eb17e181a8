"""DICOM series, MetaImage and NRRD through SimpleITK, which is optional, brought into the axes NIfTI files are read in."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.geometry import LPS, Geometry
from toolkit.data.source import Arrays, checked_image, decoding
from toolkit.data.volumes import geometry_of, require_same_grid
from toolkit.errors import DataError, library

SUFFIXES = (".mha", ".mhd", ".nrrd")


def read_pair(images: tuple[Path, ...], label: Path | None, *, dims: int = 3) -> Arrays:
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
    geometry = geometry_of(LPS @ affine, stored.shape, path, dims)
    return geometry.arrange(stored), geometry


def check_compressed(path: Path) -> None:
    """Read the compressed voxels of MetaImage and NRRD to the end of their stream, whose checksum ITK does not look at."""
    if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
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
