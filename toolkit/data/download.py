"""Fetch files over https: resumed where they broke off, checked by size and SHA-256, never visible before they are right.

The standard library is used rather than a package: resuming, a bound on every wait, and the refusal of redirects to
other hosts are the point here, and the download packages leave them out or add a dependency for the easy part.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from toolkit.data.manifest import Download, Manifest
from toolkit.data.source import file_sha256
from toolkit.errors import DataError
from toolkit.files import write_atomically

_BLOCK = 2**16


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects on one host only, and never from https to http."""

    max_redirections = 5

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            fp.close()
            raise DataError(
                f"The server sends us elsewhere: {new.scheme}://{new.netloc}.",
                where=req.full_url,
                fix="Check the address of the data set at its publisher; it may have moved.",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(
    source: Download,
    folder: str | os.PathLike[str],
    *,
    timeout: float = 30.0,
    attempts: int = 4,
    progress: bool = True,
    slowest: float = 256.0,
    pause: float = 1.0,
) -> Path:
    """Fetch one file into a folder.

    Args:
        source: address, size and SHA-256.
        folder: where it goes; until it is complete and checked it is a hidden file there.
        timeout: seconds without a byte after which an attempt ends.
        attempts: how often a broken transfer is taken up again.
        progress: show a bar on stderr.
        slowest: bytes per second below which an attempt ends after `timeout` seconds.
        pause: seconds between two attempts.

    Raises:
        DataError: no connection, a server that refuses, breaks off, sends us elsewhere, or sends other bytes than
            were announced; a file of that name that has other content.
    """
    folder = Path(folder)
    name = source.file or Path(urllib.parse.urlsplit(source.url).path).name
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise DataError(f"{name!r} is no file name.", where=source.url, fix="Set `file` in the manifest.")
    target, partial = folder / name, folder / f".{name}.{source.sha256[:12]}.part"
    if target.is_file():
        if file_sha256(target) == source.sha256:
            return target
        raise DataError(
            "A file of this name is there, with other content than the manifest records.",
            where=str(target),
            fix="Move it away and fetch again.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause)
        try:
            _continue(source, partial, timeout, slowest, progress)
        except DataError:
            partial.unlink(missing_ok=True)
            raise
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # what we have is longer than what the server has
                partial.unlink(missing_ok=True)
            raise _failed(source, f"The server answers {error.code} ({error.reason})") from error
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, (socket.gaierror, ConnectionRefusedError)):
                raise _offline(source, cause) from error
            reason = f"{type(cause).__name__}: {cause}"
            continue
        if partial.stat().st_size == source.bytes:
            return _accept(source, partial, target)
        reason = f"it ended after {partial.stat().st_size} of {source.bytes} bytes"
    raise _failed(source, f"The transfer broke off {attempts} times (last: {reason})")


def _continue(source: Download, partial: Path, timeout: float, slowest: float, progress: bool) -> None:
    """Append what is missing to the partial file."""
    have = partial.stat().st_size if partial.is_file() else 0
    if have >= source.bytes:
        return
    headers = {"User-Agent": "toolkit", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    opener = urllib.request.build_opener(_SameHost())
    with opener.open(urllib.request.Request(source.url, headers=headers), timeout=timeout) as answer:
        continued = answer.status == 206
        if continued and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            partial.unlink(missing_ok=True)
            raise http.client.HTTPException("the server continued at another place")
        start = have if continued else 0
        announced = answer.headers.get("Content-Length", "")
        if announced.isdecimal() and start + int(announced) != source.bytes:
            raise DataError(
                f"The server announces {start + int(announced)} bytes; the manifest records {source.bytes}.",
                where=source.url,
                fix="The file has changed at its source, or an error page is sent in its place.",
            )
        with partial.open("ab" if continued else "wb") as sink:
            _copy(answer, sink, source, start, (timeout, slowest), progress)


def _copy(answer: Any, sink: Any, source: Download, start: int, pace: tuple[float, float], progress: bool) -> None:
    from tqdm import tqdm

    timeout, slowest = pace
    total, since, mark = start, time.monotonic(), start
    with tqdm(total=source.bytes, initial=start, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        while block := answer.read1(_BLOCK):
            total += len(block)
            if total > source.bytes:
                raise DataError(
                    f"The server sends more than the {source.bytes} bytes that the manifest records.",
                    where=source.url,
                    fix="The file has changed at its source; nothing of it was kept.",
                )
            sink.write(block)
            bar.update(len(block))
            elapsed = time.monotonic() - since
            if elapsed > timeout:
                if total - mark < slowest * elapsed:
                    raise TimeoutError(f"less than {slowest:g} bytes per second for {elapsed:.0f} seconds")
                since, mark = time.monotonic(), total


def _accept(source: Download, partial: Path, target: Path) -> Path:
    found = file_sha256(partial)
    if found != source.sha256:
        partial.unlink()
        raise DataError(
            f"The file has the SHA-256 {found}; the manifest records {source.sha256}.",
            where=source.url,
            fix="It was damaged or exchanged; it was deleted. Fetch again; if this stays, do not use it.",
        )
    partial.replace(target)
    return target


def fetch_all(manifest: Manifest, folder: Path, **options: Any) -> list[Path]:
    """Fetch and unpack all files of a manifest into the data folder; what is there and right is left alone.

    Raises:
        DataError: as `fetch` and `unpack`; a data set that cannot be fetched (the message is what to do instead).
    """
    from toolkit.data.archive import unpack
    from toolkit.data.catalogue import steps

    if not manifest.access.files:
        numbered = "".join(f"\n    {number}. {step}" for number, step in enumerate(steps(manifest), start=1))
        raise DataError(
            f"{manifest.name!r} cannot be fetched by a program ({manifest.access.kind}).",
            where=manifest.access.page or manifest.name,
            fix=f"to do{numbered}",
        )
    store = folder.parent / ".downloads" / manifest.name
    fetched = []
    for source in manifest.access.files:
        if source.unpack:
            fetched.append(path := fetch(source, store, **options))
            record = path.with_name(f".{path.name}.{source.sha256[:12]}.files")
            if not _all_there(record, folder):
                _note(record, unpack(path, folder), folder)
        else:
            fetched.append(fetch(source, folder, **options))
    return fetched


def _all_there(record: Path, folder: Path) -> bool:
    """Whether every file that an archive was unpacked to is still there, with its size."""
    try:
        entries: list[tuple[str, int]] = json.loads(record.read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in entries)
    except (OSError, ValueError, TypeError):
        return False


def _note(record: Path, names: list[str], folder: Path) -> None:
    """Keep the names and sizes of what an archive was unpacked to, beside the archive."""
    entries = [(name, (folder / name).stat().st_size) for name in names]
    write_atomically(record, json.dumps(entries))


def _failed(source: Download, what: str) -> DataError:
    return DataError(
        f"{what}.",
        where=source.url,
        fix="Run the same command again: it continues where this one stopped. Or download the file by hand.",
    )


def _offline(source: Download, cause: BaseException) -> DataError:
    host = urllib.parse.urlsplit(source.url).netloc
    return DataError(
        f"There is no connection to {host} ({cause}).",
        where=source.url,
        fix="Connect to the internet (or set https_proxy), or download the file elsewhere and put it in place.",
    )
