"""Manifests: one TOML file per data set that says what it is, where it comes from and how its files are laid out."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import sysconfig
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Literal

from toolkit.errors import DataError

_STRICT: dict[str, Any] = {"extra": "forbid"}
FACTS = (
    "source",
    "citation",
    "licence",
    "access",
    "layout",
    "classes",
    "label_coding",
    "sites",
    "splits",
    "cases",
    "spacing",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """One file to fetch: its address, exact size and SHA-256; archives are unpacked, other files stored as `file`."""

    url: str
    bytes: int
    sha256: str
    file: str = ""
    unpack: bool = True
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """How one gets the data: `kind`, the page to visit, the steps, in order, and what can be fetched."""

    kind: Literal["embedded", "download", "manual", "derived"]
    page: str = ""
    steps: tuple[str, ...] = ()
    files: tuple[Download, ...] = ()
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cine:
    """Frames numbered through all slice positions: position = (frame - first) // frames, phase = the remainder."""

    column: str
    frames: int
    first: int = 1
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pattern:
    """Where images lie, for data without an index table: names in braces are read from the paths that are found.

    Attributes:
        image: path of an image below the data folder, `{name}` for what varies; ends in `/` for a folder (DICOM).
        label: path of its label with the same names; upper and lower case may differ; empty = none, or inside.
        background: these images have no label file because nothing in them belongs to a class.
        values: further columns that all these images share.
    """

    image: str
    label: str = ""
    background: bool = False
    values: dict[str, str] = dataclasses.field(default_factory=dict)
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideTable:
    """A table beside the images: column `key` names an image's stem, `columns` maps our names to its own.

    `otherwise` gives the columns where the file is not there, as templates over the row.
    """

    file: str
    key: str
    columns: dict[str, str]
    otherwise: dict[str, str]
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Files of the data set; names in braces are columns of the index table.

    Attributes:
        kind: which reader: NIfTI pairs, `.npz` stacks, picture pairs, arrays in `.npz` or HDF5 files, what
            SimpleITK reads (DICOM series, MetaImage, NRRD), or a generator.
        rows: where the index comes from: the `.csv` beside the manifest, patterns of file names, or the files
            that ACDC, M&Ms and the Medical Segmentation Decathlon bring along (see `toolkit.data.discovery`).
        patterns: for `rows = "pattern"`.
        fields: column -> regular expression that its values match in full (default: anything without `/`).
        rename: column -> value found -> value used.
        split_files: split -> text file of file names, one per line, for pattern rows; without them it is derived.
        side_table: a table beside the images with further columns, for pattern rows.
        expects: file pattern -> how many files the complete data set has (0 = at least one).
        also: patterns of files that the release has besides and that are no cases.
        frame: index along the fourth axis of an image, for 4-D files.
        label_frame: the same for labels.
        threshold: label values from here on (mean of the colours) are class 1, the rest class 0.
        image: path of an image below the data folder.
        label: path of its label (for `.npz` stacks the same file).
        image_key: array of the image in an `.npz` file.
        label_key: array of the label.
        slices: number of slices of a stack; `header` = as many as the file has.
        label_values: stored label value -> class, if the coding differs.
        foreground: every label value above 0 is class 1.
        cine: how slice position and phase follow from a frame number.
        generator: module of an embedded data set.
    """

    kind: Literal["nifti-pairs", "npz-stacks", "picture-pairs", "array-files", "itk-pairs", "generated"]
    rows: Literal["table", "pattern", "acdc", "mnms", "decathlon"] = "table"
    patterns: tuple[Pattern, ...] = ()
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    rename: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    split_files: dict[str, str] = dataclasses.field(default_factory=dict)
    side_table: SideTable | None = None
    expects: dict[str, int] = dataclasses.field(default_factory=dict)
    also: tuple[str, ...] = ()
    frame: str = ""
    label_frame: str = ""
    threshold: int | None = None
    image: str = ""
    label: str = ""
    image_key: str = "image"
    label_key: str = "label"
    slices: str = ""
    label_values: dict[str, int] | None = None
    foreground: bool = False
    cine: Cine | None = None
    generator: str = ""
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Templates over the index table for the identity of a case."""

    case: str
    subject: str
    split: str
    volume: str = ""
    position: str = ""
    site: str = ""
    group: str = ""
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """One data set. The index table and the checksums are files of the same name beside it (`.csv`, `.sha256`).

    Attributes:
        name: name for `load_task`.
        title: one line for people.
        anatomy: what is segmented.
        modality: how the images were made.
        dims: 2 or 3, spatial axes of a case.
        channels: channels of every image as the network sees it.
        channel_rule: `as-is`, or `grey-to-rgb`: a grey image is repeated into three channels.
        classes: class index -> name.
        sites: domains, in the order of `task.sites`.
        spacing: where the voxel size comes from: `header`, `generated`, or `unknown`.
        normalisation: rule of `toolkit.data.normalise`.
        patch_size: default network input size.
        flips: axes along which a mirrored image is plausible.
        source: where the data were published.
        citation: what to cite.
        licence: licence of the data.
        access: how to get them.
        layout: their files.
        columns: identity of a case in the index table.
        reassign: split -> subjects that are moved there from the published split.
        split_lists: name -> split -> subjects; subjects that a list does not name are left out.
        default_split: the list that `load_task(name)` takes; empty = the split of the files, else a derived one.
        validation_share: share of the training subjects that become `val` where no validation split is published.
        hold_out_by: template of what then stays together; default the subject.
        label_coding: how labels are stored and what is easily mistaken about them.
        unconfirmed: fact -> what is not confirmed about it; facts that are not named here are confirmed.
        notes: what a user of these data has to know.
        folder: where the manifest was read from.
    """

    name: str
    title: str
    anatomy: str
    modality: str
    dims: Literal[2, 3]
    channels: int
    channel_rule: Literal["as-is", "grey-to-rgb"] = "as-is"
    classes: dict[int, str]
    sites: tuple[str, ...]
    spacing: Literal["header", "generated", "unknown"]
    normalisation: str
    patch_size: tuple[int, ...]
    flips: tuple[int, ...] = ()
    source: str
    citation: str
    licence: str
    access: Access
    layout: Layout
    columns: Columns | None = None
    reassign: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    split_lists: dict[str, dict[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    default_split: str = ""
    validation_share: float = 0.0
    hold_out_by: str = ""
    label_coding: str = ""
    unconfirmed: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: str = ""
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    @property
    def table_path(self) -> Path:
        """The index table: one row per image."""
        return Path(self.folder) / f"{self.name}.csv"

    @property
    def checksum_path(self) -> Path:
        """Checksums of all files, as `sha256sum` writes them."""
        return Path(self.folder) / f"{self.name}.sha256"


def shipped_folders(variable: str, source: str) -> list[Path]:
    """Folders of files that come with the package: those of an environment variable, `source` in the tree, installed ones."""
    own = [Path(part) for part in os.environ.get(variable, "").split(os.pathsep) if part]
    schemes = ["data"] if os.name == "nt" else ["data", "userbase"]
    roots = [Path(root) for scheme in schemes if (root := sysconfig.get_config_vars().get(scheme) or "")]
    roots.append(Path(sysconfig.get_path("data")))
    installed = [root / "share" / "toolkit" / Path(source).name for root in roots]
    folders = [*own, Path(__file__).resolve().parents[2] / source, *installed]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def manifest_folders() -> list[Path]:
    """Where manifests are looked for: $TOOLKIT_MANIFESTS, the source tree, the installed data files."""
    return shipped_folders("TOOLKIT_MANIFESTS", "data_manifests")


def manifest_names() -> list[str]:
    """Names of all manifests that are found, sorted."""
    return sorted({path.stem for folder in manifest_folders() for path in folder.glob("*.toml")})


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check one manifest.

    Raises:
        DataError: not TOML, or a key that is missing, unknown or of the wrong kind; the message names the key.
    """
    from pydantic import TypeAdapter, ValidationError

    from toolkit.data.labels import checked_classes
    from toolkit.data.normalise import check_rule

    path = Path(path)
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
        manifest = TypeAdapter(Manifest).validate_python({**text, "folder": str(path.parent)})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(
            f"The manifest cannot be read: {error}.", where=str(path), fix="Write it as TOML in UTF-8."
        ) from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}" for problem in error.errors()]
        raise DataError(
            "The manifest has wrong keys.",
            where=f"{path}: " + "; ".join(problems),
            fix="Correct these keys; data_manifests/ has complete examples.",
        ) from error
    try:
        checked_classes(manifest.classes)
        check_rule(manifest.normalisation)
    except ValueError as error:
        raise DataError(f"The manifest cannot work: {error}", where=str(path)) from error
    _check_consistency(manifest, path)
    return manifest


def _check_consistency(manifest: Manifest, path: Path) -> None:
    problems = []
    if manifest.name != path.stem:
        problems.append(f"name: is {manifest.name!r}, but the file is called {path.name}")
    if len(manifest.patch_size) != manifest.dims or min(manifest.patch_size, default=0) < 1:
        problems.append(f"patch_size: needs {manifest.dims} positive numbers")
    if any(axis not in range(manifest.dims) for axis in manifest.flips):
        problems.append(f"flips: axes are 0 to {manifest.dims - 1}")
    if manifest.layout.kind == "generated":
        if not manifest.layout.generator:
            problems.append("layout.generator: is missing")
    elif manifest.columns is None or not (manifest.layout.image or manifest.layout.rows != "table"):
        problems.append("columns and layout.image: are missing")
    if not manifest.sites:
        problems.append("sites: at least one")
    problems += [
        f"unconfirmed.{fact}: is none of {', '.join(FACTS)}" for fact in manifest.unconfirmed if fact not in FACTS
    ]
    problems += _layout_problems(manifest)
    if problems:
        raise DataError("The manifest contradicts itself.", where=f"{path}: " + "; ".join(problems))


def _layout_problems(manifest: Manifest) -> list[str]:
    layout, problems = manifest.layout, []
    if (layout.rows == "pattern") != bool(layout.patterns):
        problems.append('layout.patterns: go with rows = "pattern"')
    if layout.side_table and layout.side_table.columns.keys() != layout.side_table.otherwise.keys():
        problems.append("layout.side_table: columns and otherwise name the same columns")
    if any(bool(pattern.label) and pattern.background for pattern in layout.patterns):
        problems.append("layout.patterns: background images have no label")
    if layout.rows != "table" and not layout.expects:
        problems.append("layout.expects: names the files that there must be")
    for column, expression in layout.fields.items():
        try:
            re.compile(expression)
        except re.error as error:
            problems.append(f"layout.fields.{column}: {error}")
    if manifest.default_split and manifest.default_split not in manifest.split_lists:
        problems.append(f"default_split: there is no list {manifest.default_split!r}")
    for name, lists in manifest.split_lists.items():
        listed = [subject for subjects in lists.values() for subject in subjects]
        if twice := sorted({subject for subject in listed if listed.count(subject) > 1}):
            problems.append(f"split_lists.{name}: names {', '.join(twice)} twice")
        problems += [
            f"split_lists.{name}: {split} is no split" for split in lists if split not in ("train", "val", "test")
        ]
    if not 0 <= manifest.validation_share < 1:
        problems.append("validation_share: from 0 to below 1")
    if manifest.access.kind == "download" and not manifest.access.files:
        problems.append("access.files: are missing")
    for number, file in enumerate(manifest.access.files):
        if not re.fullmatch("[0-9a-f]{64}", file.sha256):
            problems.append(f"access.files.{number}.sha256: is no SHA-256 in lower-case hexadecimal")
        if file.bytes < 1 or not file.url.startswith(("https://", "http://127.0.0.1:")):
            problems.append(f"access.files.{number}: needs an https address and its size in bytes")
    return problems


def read_table(manifest: Manifest) -> list[dict[str, str]]:
    """Rows of the index table, with `position` and `phase` added where the manifest derives them from frames.

    Raises:
        DataError: no table, no rows, or a frame number that is none.
    """
    path = manifest.table_path
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise DataError(
            f"The index table of {manifest.name!r} cannot be read: {error.strerror}.",
            where=str(path),
            fix="It belongs beside the manifest; install the toolkit again.",
        ) from error
    if not rows:
        raise DataError("The index table has no rows.", where=str(path))
    cine = manifest.layout.cine
    for number, row in enumerate(rows if cine else [], start=2):
        try:
            position, phase = divmod(int(row[cine.column]) - cine.first, cine.frames)  # type: ignore[union-attr]
        except (KeyError, ValueError) as error:
            raise DataError(f"Row {number} has no frame number.", where=f"{path}: {error}") from error
        row.update(position=str(position), phase=f"{phase:02d}")
    return rows


def filled(template: str, row: dict[str, str], manifest: Manifest) -> str:
    """A template with a row's values put in.

    Raises:
        DataError: a column that the index table does not have.
    """
    try:
        return template.format_map(row)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"The template {template!r} cannot be filled: {error}.",
            where=str(manifest.table_path),
            fix=f"Columns: {', '.join(row)}.",
        ) from error
