"""Fetch the files of a data set with pooch: resumed where they broke off, checked by hash, invisible before they are right."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import socket
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from toolkit.data.archive import unpack
from toolkit.data.manifest import ADDRESS, Download, Manifest
from toolkit.errors import DataError
from toolkit.files import write_atomically

_BLOCK = 2**16
_REDIRECTS = 5


@dataclasses.dataclass(frozen=True)
class Transfer:
    """How files are transferred; a downloader for pooch that continues a partial file."""

    size: int = 0  # bytes that the manifest records; 0 = not known
    partial: Path = Path()  # hidden file that keeps what has come
    timeout: float = 30.0  # seconds without a byte after which an attempt ends
    attempts: int = 4  # how often a broken transfer is taken up again
    pause: float = 1.0  # seconds between two attempts
    progress: bool = True  # show a bar on stderr

    def __call__(self, url: str, output_file: str, pooch: Any = None) -> None:
        """Bring `url` to `output_file`."""
        import requests
        from urllib3.exceptions import HTTPError, NewConnectionError

        reason = ""
        for attempt in range(self.attempts):
            time.sleep(self.pause if attempt else 0)
            try:
                size = self._continue(url)
            except (requests.RequestException, HTTPError) as error:
                if isinstance(getattr(error.args[0] if error.args else None, "reason", None), NewConnectionError):
                    raise _offline(url, error) from error
                reason = f"{type(error).__name__}: {str(error)[:120]}"
                continue
            have = self.partial.stat().st_size
            if have == size:
                self.partial.replace(output_file)
                return
            reason = f"it ended after {have} of {size} bytes"
        raise _failed(url, f"The transfer broke off {self.attempts} times (last: {reason})")

    def _continue(self, url: str) -> int:
        """Append what is missing to the partial file; returns how long the whole is."""
        from tqdm import tqdm

        have = self.partial.stat().st_size if self.partial.is_file() else 0
        if self.size and have >= self.size:
            return self.size
        headers = {"User-Agent": "toolkit", "Accept-Encoding": "identity"}
        with self._answer(url, headers | ({"Range": f"bytes={have}-"} if have else {})) as answer:
            if answer.status_code == 416 and have and not self.size:
                return have  # all of it is here: the hash will tell
            if answer.status_code not in (200, 206):
                self.partial.unlink(missing_ok=True)
                raise _failed(url, f"The server answers {answer.status_code} ({answer.reason})")
            start = have if answer.status_code == 206 else 0
            if start and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
                self.partial.unlink(missing_ok=True)
                raise _failed(url, "The server continued at another place")
            size = start + int(answer.headers.get("Content-Length", "0"))
            if self.size and size not in (start, self.size):
                self.partial.unlink(missing_ok=True)
                raise _changed(url, f"announces {size} bytes; the manifest records {self.size}")
            size = self.size or size
            bar = tqdm(
                total=size or None, initial=start, unit="B", unit_scale=True, disable=not self.progress, leave=False
            )
            with bar, self.partial.open("ab" if start else "wb") as sink:
                while block := answer.raw.read1(_BLOCK):
                    sink.write(block)
                    bar.update(len(block))
                    if size and sink.tell() > size:
                        sink.close()
                        self.partial.unlink()
                        raise _changed(url, f"sends more than the {size} bytes that are recorded")
        return size or self.partial.stat().st_size

    def _answer(self, url: str, headers: dict[str, str]) -> Any:
        """The server's answer, redirects followed on one host only."""
        import requests

        for _ in range(_REDIRECTS):
            refuse_private(url)
            answer = requests.get(url, headers=headers, stream=True, timeout=self.timeout, allow_redirects=False)
            if not answer.is_redirect:
                return answer
            answer.close()
            target = urllib.parse.urljoin(url, answer.headers["Location"])
            old, new = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
            if (old.scheme, old.netloc) != (new.scheme, new.netloc):
                fix = "Check the address of the data set at its publisher; it may have moved."
                raise DataError(f"The server sends us elsewhere: {new.scheme}://{new.netloc}.", where=url, fix=fix)
            url = target
        raise _failed(url, f"The server answers {answer.status_code} ({answer.reason}) again and again")


def fetch(source: Download, folder: Path, **options: Any) -> Path:
    """Fetch one file into a folder; until it is complete and checked it is a hidden file there."""
    import pooch

    name = source.file or Path(urllib.parse.urlsplit(source.url).path).name
    target, partial = folder / name, folder / f".{name}.{source.hash.rpartition(':')[2][:12]}.part"
    if target.is_file() and not pooch.hashes.hash_matches(target, source.hash):
        what = "A file of this name is there, with other content than the manifest records."
        raise DataError(what, where=target, fix="Move it away and fetch again.")
    missing = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")
    transfer = Transfer(size=source.bytes, partial=partial, **options)
    try:
        return Path(pooch.retrieve(source.url, source.hash, fname=name, path=folder, downloader=transfer))
    except DataError:
        raise
    except ValueError as error:
        what = f"The file has another hash than the manifest records ({source.hash[:19]}...)."
        fix = "It was damaged or exchanged; it was deleted. Fetch again; if this stays, do not use it."
        raise DataError(what, where=source.url, fix=fix) from error
    finally:
        if missing and not any(folder.iterdir()):
            folder.rmdir()


def fetch_all(manifest: Manifest, folder: Path, **options: Any) -> list[Path]:
    """Fetch and unpack all files of a manifest into the data folder; what is there and right is left alone."""
    if not manifest.access.files:
        numbered = "".join(f"\n    {number}. {step}" for number, step in enumerate(manifest.access.steps, start=1))
        what = f"{manifest.name!r} cannot be fetched by a program ({manifest.access.kind})."
        raise DataError(what, where=manifest.access.page or manifest.name, fix=f"to do{numbered}")
    store = folder.parent / ".downloads" / manifest.name
    fetched = []
    for source in manifest.access.files:
        if source.unpack:
            fetched.append(path := fetch(source, store, **options))
            record = path.with_name(f".{path.name}.{source.hash.rpartition(':')[2][:12]}.files")
            if not _all_there(record, folder):
                names = unpack(path, folder, inside=source.inside)
                write_atomically(record, json.dumps([(name, (folder / name).stat().st_size) for name in names]))
        else:
            fetched.append(fetch(source, folder, **options))
    return fetched


def refuse_private(url: str) -> None:
    """Refuse an address that is not https, or that leads into this machine or a private network.

    A proxy resolves names itself; then only addresses written as numbers can be checked here.
    """
    parts = urllib.parse.urlsplit(url) if ADDRESS.fullmatch(url) else urllib.parse.SplitResult("", "", "", "", "")
    host = parts.hostname or ""
    try:
        answers = socket.getaddrinfo(host, parts.port or 443, type=socket.SOCK_STREAM) if host else []
    except (OSError, UnicodeError) as error:
        if urllib.request.getproxies().get(parts.scheme):
            return
        raise _offline(url, error) from error
    if not answers or not all(_public(str(entry[4][0])) for entry in answers):
        what = f"The address {url} is not fetched: it is not https, or it lies in a private network."
        fix = "Use the public https address of the data set, or put the files in place by hand."
        raise DataError(what, where=url, fix=fix)


def _public(address: str) -> bool:
    """Whether a number belongs to one machine of the internet, also where IPv6 wraps one of IPv4."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        last = ipaddress.IPv4Address(int(ip) % 2**32) if int(ip) >> 32 in (0, 0x64FF9B << 64) else None  # NAT64
        inner = [one for one in (ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ()), last) if one is not None]
        return ip.is_global and not ip.is_multicast and all(one.is_global for one in inner)
    return bool(ip.is_global and not ip.is_multicast)


def _all_there(record: Path, folder: Path) -> bool:
    """Whether every file that an archive was unpacked to is still there, with its size."""
    try:
        entries: list[tuple[str, int]] = json.loads(record.read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in entries)
    except (OSError, ValueError, TypeError):
        return False


def _failed(url: str, what: str) -> DataError:
    fix = "Run the same command again: it continues where this one stopped. Or download the file by hand."
    return DataError(f"{what}.", where=url, fix=fix)


def _changed(url: str, what: str) -> DataError:
    fix = "The file has changed at its source, or an error page is sent in its place; nothing of it was kept."
    return DataError(f"The server {what}.", where=url, fix=fix)


def _offline(url: str, cause: BaseException) -> DataError:
    what = f"There is no connection to {urllib.parse.urlsplit(url).netloc} ({type(cause).__name__})."
    fix = "Connect to the internet (or set https_proxy), or download the file elsewhere and put it in place."
    return DataError(what, where=url, fix=fix)
