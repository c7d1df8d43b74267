"""Fetch one large file over HTTP so that a broken line, a broken server or a broken file does no harm.

requests and urllib3 follow redirects, ask busy servers again and wait as those ask. What is added here: a partial file
is kept and gone on with where the sha256 is known (RFC 9110, section 14), a transfer that stalls is given up and tried
again, and a file takes its final name only when its size and sha256 are right.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from facefix.errors import WeightsUnavailable
from facefix.files.digests import sha256_of

BLOCK = 1 << 18

Progress = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be (None while unknown)."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a bad line. The defaults suit a home connection."""

    attempts: int = 6
    """tries in a row that bring less than `stall_bytes` before giving up"""
    stall_seconds: float = 30.0
    """a connection that brings less than `stall_bytes` in this time is given up and tried again"""
    stall_bytes: int = 4096
    first_pause: float = 1.0
    """seconds before the second try; doubles with each try"""
    longest_pause: float = 60.0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch and what it has to be."""

    url: str
    size: int | None = None
    sha256: str | None = None


class _Interrupted(Exception):
    """This transfer broke off; what came is kept, and another one may go on."""


def check(path: Path, wanted: RemoteFile) -> str:
    """Compare a file with what it has to be; return its sha256.

    Raises WeightsUnavailable naming the file, what was expected and what was found.
    """
    size = path.stat().st_size
    if wanted.size is not None and size != wanted.size:
        raise WeightsUnavailable(f"{path}: expected {wanted.size} bytes, found {size}; fetch it again")
    digest = sha256_of(path)
    if wanted.sha256 is not None and digest != wanted.sha256:
        raise WeightsUnavailable(
            f"{path}: expected sha256 {wanted.sha256}, found {digest}; it is not the published file"
        )
    return digest


def fetch(
    remote: RemoteFile, target: Path, *, patience: Patience | None = None, progress: Progress | None = None
) -> str:
    """Download to `target`, going on with what an earlier try left in `target`.part; return the sha256.

    An existing `target` that passes the checks is kept and nothing is fetched. Without a known sha256 nothing would
    tell a splice of two files from the real one: then every try begins anew. Raises WeightsUnavailable when the
    address is wrong, the server will not give the file, the line stays bad, the disk is full or the content is not
    what was expected.
    """
    _require_http(remote.url)
    if target.exists():
        try:
            return check(target, remote)
        except WeightsUnavailable:
            target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    download = _Download(remote, part, patience or Patience(), progress or (lambda _got, _total: None))
    try:
        digest = download.sound()
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
    except requests.RequestException as error:
        raise WeightsUnavailable(f"{remote.url}: {error}") from None
    except OSError as error:
        raise WeightsUnavailable(
            f"{part}: cannot be written ({error.strerror or error}); make room, or set FACEFIX_WEIGHTS_DIR, and run it "
            "again"
        ) from None
    return digest


@dataclass(frozen=True, slots=True)
class _Download:
    """One file on its way into its part."""

    remote: RemoteFile
    part: Path
    patience: Patience
    progress: Progress

    def sound(self) -> str:
        """Fetch until the part is what it has to be, twice at most; its sha256."""
        self.complete()
        try:
            return check(self.part, self.remote)
        except WeightsUnavailable:
            self.part.unlink()
        self.complete()
        try:
            return check(self.part, self.remote)
        except WeightsUnavailable as error:
            self.part.unlink()
            problem = str(error).removeprefix(f"{self.part}: ").partition(";")[0]
            raise WeightsUnavailable(
                f"{self.remote.url}: {problem}, twice; the address does not give the file"
            ) from None

    def complete(self) -> None:
        """Connect until the part has all that the server offers."""
        failures = 0
        with _session(self.patience) as session:
            while self.remote.size is None or _length(self.part) != self.remote.size:
                if self.remote.sha256 is None or _length(self.part) > (self.remote.size or float("inf")):
                    self.part.unlink(missing_ok=True)
                before = _length(self.part)
                try:
                    return self.transfer(session, before)
                except (_Interrupted, urllib3.exceptions.HTTPError) as problem:
                    failures = 0 if _length(self.part) - before >= self.patience.stall_bytes else failures + 1
                    if failures >= self.patience.attempts:
                        raise self.given_up(problem) from None
                pause = self.patience.first_pause * 2 ** max(failures - 1, 0)
                time.sleep(min(pause, self.patience.longest_pause))

    def given_up(self, problem: object) -> WeightsUnavailable:
        """The error for a line or server that stays bad."""
        return WeightsUnavailable(
            f"{self.remote.url}: {problem}; given up after {self.patience.attempts} tries. {_length(self.part)} bytes "
            f"are kept in {self.part}: run the command again to go on from there"
        )

    def transfer(self, session: requests.Session, have: int) -> None:
        """One connection: append to the part, which has ``have`` bytes, what is missing."""
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            response = session.get(self.remote.url, headers=headers, stream=True, timeout=self.patience.stall_seconds)
        except requests.ConnectionError as error:  # urllib3 has tried again
            raise self.given_up(error) from None
        with response:
            total = self.expected_total(response, have)
            with self.part.open("ab" if response.status_code == requests.codes.partial else "wb") as stream:
                window, window_bytes = time.monotonic(), 0
                while block := response.raw.read1(BLOCK):
                    stream.write(block)
                    window_bytes += len(block)
                    self.progress(stream.tell(), total)
                    if time.monotonic() - window > self.patience.stall_seconds:
                        if window_bytes < self.patience.stall_bytes:
                            raise _Interrupted(f"only {window_bytes} bytes in {self.patience.stall_seconds:g} s")
                        window, window_bytes = time.monotonic(), 0

    def expected_total(self, response: requests.Response, have: int) -> int | None:
        """Bytes that the file will have; refuses an answer that is not the file."""
        url, status = self.remote.url, response.status_code
        if status == requests.codes.requested_range_not_satisfiable:
            self.part.unlink(missing_ok=True)
            raise _Interrupted("the kept part does not fit the file any more")
        if status in _BUSY:  # urllib3 has asked again
            raise self.given_up(f"HTTP {status} {response.reason}")
        if not response.ok:
            raise WeightsUnavailable(
                f"{url}: HTTP {status} {response.reason}; the address may have moved: fetch the file elsewhere and "
                "give it with --from, or set FACEFIX_WEIGHTS_MIRROR"
            )
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise WeightsUnavailable(
                f"{url}: expected a file of weights, got a web page (a login page or a captive portal?); fetch the "
                "file with a browser and give it with --from"
            )
        length = response.headers.get("Content-Length", "")
        missing = int(length) if length.isdigit() else None
        if missing is None:
            return self.remote.size
        total = missing + (have if status == requests.codes.partial else 0)
        if self.remote.size not in (None, total):
            raise WeightsUnavailable(
                f"{url}: expected {self.remote.size} bytes, the server offers {total}; it is not the published file"
            )
        free = shutil.disk_usage(self.part.parent).free
        if missing > free:
            raise WeightsUnavailable(
                f"{self.part.parent}: {missing} bytes are to come but only {free} are free; make room"
            )
        return total


_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpOnly(requests.Session):
    """Follows redirects to http and https only, and never from https down to http."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Where the response leads, None when it is no redirect. Raises WeightsUnavailable for a place not to go."""
        target = super().get_redirect_target(resp)
        if target is not None:
            _require_http(urljoin(resp.url, target), came_from=resp.url)
        return target


def _session(patience: Patience) -> requests.Session:
    """Asks again when a server cannot be reached or is busy; waits as long as it says, else twice as long each time."""
    session = HttpOnly()
    session.max_redirects = 10
    session.headers.update({"User-Agent": "facefix", "Accept-Encoding": "identity"})
    retry = urllib3.Retry(
        total=patience.attempts - 1,
        other=0,  # a certificate that is not valid stays so
        status_forcelist=_BUSY,
        raise_on_status=False,
        backoff_factor=patience.first_pause,
        backoff_max=patience.longest_pause,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _require_http(url: str, came_from: str | None = None) -> None:
    scheme = urlsplit(url).scheme.lower()
    if scheme not in {"http", "https"}:
        raise WeightsUnavailable(f"{came_from or url}: expected an http or https address, found {url!r}")
    if came_from is not None and scheme == "http" and came_from.lower().startswith("https:"):
        raise WeightsUnavailable(f"{came_from}: redirects from https to plain http ({url}); not followed")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
