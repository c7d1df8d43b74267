"""Fetch one large file over HTTP so that a broken line, a broken server or a broken file does no harm.

Partial files are kept and resumed (RFC 9110, sections 13.1.5 and 14), a stalled transfer is given up and tried again,
and a file takes its final name only when its size and sha256 are right.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facefix.errors import WeightsUnavailable
from facefix.files.digests import sha256_of

BLOCK = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called with the bytes there are and the bytes there will be (None while unknown)."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a bad line. The defaults suit a home connection."""

    attempts: int = 6
    """tries in a row that bring less than `progress_bytes` before giving up"""
    stall_seconds: float = 30.0
    """a connection that brings less than `stall_bytes` in this time is given up and tried again"""
    stall_bytes: int = 4096
    progress_bytes: int = BLOCK
    first_pause: float = 1.0
    """seconds before the second try; doubles with each try"""
    longest_pause: float = 60.0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch and what it has to be."""

    url: str
    size: int | None = None
    sha256: str | None = None


class _Temporary(Exception):
    """This try failed; another one may not."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _Corrupt(_Temporary):
    """The file came whole but is not the one expected: start from nothing."""


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
    """Download to `target`, resuming what an earlier try left in `target`.part; return the sha256.

    An existing `target` that passes the checks is kept and nothing is fetched. Raises WeightsUnavailable when the
    address is wrong, the server will not give the file, the line stays bad, the disk is full or the content is not
    what was expected.
    """
    patience = patience or Patience()
    _require_http(remote.url)
    if target.exists():
        try:
            return check(target, remote)
        except WeightsUnavailable:
            target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    digest = _persist(remote, part, patience, progress)
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    part.replace(target)
    _notes_path(part).unlink(missing_ok=True)
    return digest


def _persist(remote: RemoteFile, part: Path, patience: Patience, progress: Progress | None) -> str:
    """Try until the part is complete and right; return its sha256."""
    failures, corrupt = 0, 0
    while True:
        before = _length(part)
        try:
            _transfer(remote, part, patience, progress)
            return _accept(remote, part)
        except _Corrupt as problem:
            corrupt += 1
            _discard(part)
            if corrupt == 2:
                raise WeightsUnavailable(
                    f"{remote.url}: {problem}, twice; the address does not give the file"
                ) from None
            reason, pause = str(problem), None
        except _Temporary as problem:
            reason, pause = str(problem), problem.pause
        failures = 0 if _length(part) - before >= patience.progress_bytes else failures + 1
        if failures >= patience.attempts:
            raise WeightsUnavailable(
                f"{remote.url}: {reason}; given up after {failures} tries. {_length(part)} bytes are kept in {part}: "
                "run the command again to go on from there"
            )
        if pause is None:
            pause = patience.first_pause * 2 ** max(failures - 1, 0)
        time.sleep(min(pause, patience.longest_pause))


def _accept(remote: RemoteFile, part: Path) -> str:
    size = _length(part)
    if remote.size is not None and size != remote.size:
        raise _Corrupt(f"expected {remote.size} bytes, got {size}")
    digest = sha256_of(part)
    if remote.sha256 is not None and digest != remote.sha256:
        raise _Corrupt(f"expected sha256 {remote.sha256}, got {digest}")
    return digest


def _transfer(remote: RemoteFile, part: Path, patience: Patience, progress: Progress | None) -> None:
    """One connection: append to the part what is missing."""
    have = _length(part)
    if remote.size is not None and have == remote.size:
        return
    if remote.size is not None and have > remote.size:
        _discard(part)
        have = 0
    validator = _validator(part)
    if have and validator is None and remote.sha256 is None:
        # nothing would tell a splice of two different files from the real one
        _discard(part)
        have = 0
    headers = {"User-Agent": "facefix", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        with _opener().open(
            urllib.request.Request(remote.url, headers=headers), timeout=patience.stall_seconds
        ) as response:
            _receive(response, remote, part, have, patience, progress)
    except urllib.error.HTTPError as error:
        _raise_status(error, remote, part)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        _raise_connection(error, remote, part, patience)


def _receive(
    response: Any, remote: RemoteFile, part: Path, have: int, patience: Patience, progress: Progress | None
) -> None:
    _refuse_page(response, remote)
    start = have if response.status == 206 else 0
    if response.status == 206 and _range_start(response) != have:
        _discard(part)
        raise _Temporary("the server sent another range than asked for")
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else None
    if remote.size is not None and total is not None and total != remote.size:
        raise WeightsUnavailable(
            f"{remote.url}: expected {remote.size} bytes, the server offers {total}; it is not the published file"
        )
    if total is not None:
        _require_space(part, total - start)
    _remember(part, response, remote.url)
    with part.open("r+b" if start else "wb") as stream:
        stream.seek(start)
        stream.truncate()
        got = start
        window_start, window_bytes = time.monotonic(), 0
        while block := response.read1(BLOCK):
            stream.write(block)
            got += len(block)
            window_bytes += len(block)
            if progress:
                progress(got, total if total is not None else remote.size)
            if remote.size is not None and got > remote.size:
                raise _Corrupt(f"expected {remote.size} bytes, got more")
            if time.monotonic() - window_start > patience.stall_seconds:
                if window_bytes < patience.stall_bytes:
                    raise _Temporary(f"only {window_bytes} bytes in {patience.stall_seconds:g} s")
                window_start, window_bytes = time.monotonic(), 0
    if total is not None and got < total:
        raise _Temporary(f"the connection ended after {got} of {total} bytes")


def _refuse_page(response: Any, remote: RemoteFile) -> None:
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise WeightsUnavailable(
            f"{remote.url}: expected a file of weights, got a web page (a login page or a captive portal?); "
            "fetch the file with a browser and give it with --from"
        )


def _raise_status(error: urllib.error.HTTPError, remote: RemoteFile, part: Path) -> None:
    """Turn an HTTP status into a temporary or a final failure."""
    with error:
        if error.code == 416:
            _discard(part)
            raise _Temporary("the kept part does not fit the file any more") from None
        if error.code in {408, 425, 429} or error.code >= 500:
            raise _Temporary(
                f"HTTP {error.code} {error.reason}", _retry_after(error.headers.get("Retry-After"))
            ) from None
        raise WeightsUnavailable(
            f"{remote.url}: HTTP {error.code} {error.reason}; the address may have moved: fetch the file elsewhere "
            "and give it with --from, or set FACEFIX_WEIGHTS_MIRROR"
        ) from None


def _raise_connection(error: Exception, remote: RemoteFile, part: Path, patience: Patience) -> None:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise WeightsUnavailable(f"{part}: the disk is full ({cause.strerror}); make room and run it again") from None
    if isinstance(cause, OSError) and cause.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
        raise WeightsUnavailable(f"{part}: cannot be written ({cause.strerror}); set FACEFIX_WEIGHTS_DIR") from None
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise WeightsUnavailable(
            f"{remote.url}: the server's certificate is not valid ({cause.verify_message})"
        ) from None
    if isinstance(cause, TimeoutError):
        raise _Temporary(f"nothing came for {patience.stall_seconds:g} s") from None
    raise _Temporary(f"{cause or type(error).__name__}") from None


class HttpOnlyRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https down to http."""

    max_redirections = 10

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _require_http(newurl, came_from=req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows http and https and nothing else (no file:, ftp: or data:)."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        HttpOnlyRedirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _require_http(url: str, came_from: str | None = None) -> None:
    scheme = urllib.parse.urlsplit(url).scheme.lower()
    if scheme not in {"http", "https"}:
        raise WeightsUnavailable(f"{came_from or url}: expected an http or https address, found {url!r}")
    if came_from is not None and scheme == "http" and came_from.lower().startswith("https:"):
        raise WeightsUnavailable(f"{came_from}: redirects from https to plain http ({url}); not followed")


def _require_space(part: Path, missing: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise WeightsUnavailable(f"{part.parent}: {missing} bytes are to come but only {free} are free; make room")


def _range_start(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait: RFC 9110, section 10.2.3 (a number of seconds or a date)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _notes_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember(part: Path, response: Any, url: str) -> None:
    """Keep the validator of what is being fetched, so that a later try resumes the same file and no other."""
    etag = response.headers.get("ETag", "")
    strong = etag if etag and not etag.startswith("W/") else None
    notes = {"url": url, "validator": strong or response.headers.get("Last-Modified")}
    _notes_path(part).write_text(json.dumps(notes), encoding="utf-8")


def _validator(part: Path) -> str | None:
    try:
        notes = json.loads(_notes_path(part).read_text(encoding="utf-8"))
        return notes["validator"] if isinstance(notes["validator"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes_path(part).unlink(missing_ok=True)
