"""Manifests: one TOML file per data set that says what it is, where it comes from and what is not confirmed about it."""

from __future__ import annotations

import dataclasses
import os
import re
import sysconfig
import tomllib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, Literal

from toolkit.errors import DataError, choose

# A plain address: of a user name, a backslash or brackets in front of the path, programs make different hosts.
ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+(:\d{1,4}|:[1-5]\d{4})?(/[^\\\s]*)?")
_STRICT: dict[str, Any] = {"extra": "forbid"}
FACTS = (
    *("source", "citation", "licence", "access", "layout", "classes"),
    *("label_coding", "sites", "splits", "cases", "spacing"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Download:
    """One file to fetch."""

    url: str  # https address
    hash: str  # "sha256:..." or "md5:..." of the file, as its publisher or a well-kept package gives it
    bytes: int = 0  # its size; 0 = not known
    file: str = ""  # name to store it under; default that of the address
    unpack: bool = True  # whether it is an archive to be unpacked
    inside: str = ""  # folder of the archive whose content is the data folder; empty = the archive itself
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
class Manifest:
    """One data set. The index table and the checksums are files of the same name beside it (`.csv`, `.sha256`)."""

    name: str  # name for `load_task`
    title: str  # one line for people
    anatomy: str  # what is segmented
    modality: str  # how the images were made
    dims: Literal[2, 3]  # 2 or 3, spatial axes of a case
    channels: int  # channels of every image as the network sees it
    # `as-is`, or `grey-to-rgb`: a grey image is repeated into three channels
    channel_rule: Literal["as-is", "grey-to-rgb"] = "as-is"
    classes: dict[int, str]  # class index -> name
    sites: tuple[str, ...]  # domains, in the order of `task.sites`
    # where the voxel size comes from: `header`, `generated`, or `unknown`
    spacing: Literal["header", "generated", "unknown"]
    normalisation: str  # rule of `toolkit.data.normalise`
    patch_size: tuple[int, ...]  # default network input size
    flips: tuple[int, ...] = ()  # axes along which a mirrored image is plausible
    source: str  # where the data were published
    citation: str  # what to cite
    licence: str  # licence of the data
    access: Access  # how to get them
    # pattern of paths below the data folder -> how many there are in the complete set (0 = at least one)
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    other_files: tuple[str, ...] = ()  # patterns of files that the release has besides and that are no cases
    label_values: dict[str, int] | None = None  # stored label value -> class, if the coding differs
    # name -> split -> subjects; subjects that a list does not name are left out
    split_lists: dict[str, dict[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    default_split: str = ""  # the list that `load_task(name)` takes; empty = the split of the files, else a derived one
    label_coding: str = ""  # how labels are stored and what is easily mistaken about them
    # fact -> what is not confirmed about it; facts that are not named here are confirmed
    unconfirmed: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a user of these data has to know
    folder: str = ""  # where the manifest was read from
    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    @property
    def generated(self) -> bool:
        """Whether the data are made on this machine."""
        return self.access.kind == "embedded"

    @property
    def table_path(self) -> Path:
        """The index table: one row per image."""
        return Path(self.folder) / f"{self.name}.csv"

    @property
    def checksum_path(self) -> Path:
        """Checksums of all files, as `sha256sum` writes them."""
        return Path(self.folder) / f"{self.name}.sha256"

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the files by their paths below the data folder; none where none are recorded."""
        text = self.checksum_path.read_text(encoding="utf-8") if self.checksum_path.is_file() else ""
        return {name.strip(): digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}


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
    """Read and check one manifest."""
    from pydantic import TypeAdapter, ValidationError

    from toolkit.data.labels import checked_classes
    from toolkit.data.normalise import check_rule

    path = Path(path)
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
        manifest = TypeAdapter(Manifest).validate_python({**text, "folder": str(path.parent)})
        checked_classes(manifest.classes)
        check_rule(manifest.normalisation)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}" for problem in error.errors()]
        fix = "Correct these keys; data_manifests/ has complete examples."
        raise DataError("The manifest has wrong keys.", where=f"{path}: " + "; ".join(problems), fix=fix) from error
    except (OSError, ValueError) as error:
        raise DataError(f"The manifest cannot be read: {error}.", where=path, fix="Write TOML in UTF-8.") from error
    if problems := _contradictions(manifest, path):
        raise DataError("The manifest contradicts itself.", where=f"{path}: " + "; ".join(problems))
    return manifest


def _contradictions(manifest: Manifest, path: Path) -> list[str]:
    name, dims, lists = manifest.name, manifest.dims, manifest.split_lists
    outside = [*manifest.files, *manifest.other_files, *(file.inside for file in manifest.access.files)]
    plain = re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name)
    sides = sum(side > 0 for side in manifest.patch_size)
    wrong: dict[str, bool] = {
        f"name: is {name!r}, but the file is called {path.name}": name != path.stem,
        f"name: {name!r} has other characters than letters, digits and ._+-": not plain,
        f"default_split: there is no list {manifest.default_split!r}": manifest.default_split not in ("", *lists),
        "access.files: are missing": manifest.access.kind == "download" and not manifest.access.files,
        f"patch_size: needs {dims} positive numbers": sides != dims or sides != len(manifest.patch_size),
        f"flips: axes are 0 to {dims - 1}": any(axis not in range(dims) for axis in manifest.flips),
        "sites: at least one": not manifest.sites,
        **{f"unconfirmed.{fact}: is none of {', '.join(FACTS)}": fact not in FACTS for fact in manifest.unconfirmed},
        **{f"files: {one!r} lies outside the data folder": leaves_folder(one) for one in outside},
    }
    for one, splits in lists.items():
        members = [subject for subjects in splits.values() for subject in subjects]
        twice = sorted({subject for subject in members if members.count(subject) > 1})
        wrong[f"split_lists.{one}: names {', '.join(twice)} twice"] = bool(twice)
        wrong |= {f"split_lists.{one}: {split} is no split": split not in ("train", "val", "test") for split in splits}
    for number, file in enumerate(manifest.access.files):
        key, stored = f"access.files.{number}", file.file or file.url.rsplit("/", 1)[-1]
        hashed = re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.hash)
        wrong[f"{key}.hash: is no sha256: or md5: in lower-case hexadecimal"] = not hashed
        wrong[f"{key}: needs an https address"] = file.bytes < 0 or not ADDRESS.fullmatch(file.url)
        wrong[f"{key}: {stored!r} is no file name"] = not re.fullmatch(r"[A-Za-z0-9][\w.+ -]*", stored)
    return [what for what, is_so in wrong.items() if is_so]


def leaves_folder(name: str) -> bool:
    """Whether a path below a folder is absolute, has a drive, or goes up."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return bool(posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts))


def find_manifest(name: str) -> Manifest:
    """Read the manifest of a task."""
    where = "load_task; for one's own data: toolkit.task_from_folder(images, labels, classes=...)"
    choose("task called", name, manifest_names(), where=where)
    paths = (folder / f"{name}.toml" for folder in manifest_folders())
    return read_manifest(next(path for path in paths if path.is_file()))


def cache_folder() -> Path:
    """The toolkit's cache: $TOOLKIT_CACHE, else the platform's cache folder for `toolkit`."""
    if own := os.environ.get("TOOLKIT_CACHE"):
        return Path(own)
    from platformdirs import user_cache_path

    return user_cache_path("toolkit", appauthor=False)


def data_folders(name: str) -> list[Path]:
    """Folders where the data of a task may lie, in order: below $TOOLKIT_DATA, then below the cache."""
    roots = [Path(part) for part in os.environ.get("TOOLKIT_DATA", "").split(os.pathsep) if part]
    return [root / name for root in (*roots, cache_folder())]
