"""Downloads against a local server that truncates, stalls, corrupts, redirects and refuses."""

from __future__ import annotations

import hashlib
import random
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import FaultyServer, serve

from facefix.errors import WeightsUnavailable
from facefix.weights.download import HttpOnlyRedirects, Patience, RemoteFile, fetch

CONTENT = random.Random(7).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(attempts=3, stall_seconds=0.3, progress_bytes=10_000, first_pause=0.01, longest_pause=0.05)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serve(FaultyServer(files={"weights": CONTENT})) as running:
        yield running


def remote(server: FaultyServer, path: str = "weights", sha256: str | None = SHA256) -> RemoteFile:
    return RemoteFile(server.url(path), len(CONTENT), sha256)


def get(server: FaultyServer, target: Path, **changes: object) -> str:
    return fetch(remote(server, **changes), target, patience=QUICK)  # type: ignore[arg-type]


def test_a_whole_file_arrives_with_its_digest_and_progress(server: FaultyServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    target = tmp_path / "deep" / "weights"
    digest = fetch(remote(server), target, patience=QUICK, progress=lambda got, total: seen.append((got, total)))
    assert digest == SHA256
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in target.parent.iterdir()] == ["weights"]


def test_an_existing_sound_file_is_not_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(CONTENT)
    assert get(server, tmp_path / "weights") == SHA256
    assert server.requests == []


def test_a_truncated_transfer_is_resumed_where_it_stopped(server: FaultyServer, tmp_path: Path) -> None:
    server.etags["weights"] = '"one"'
    server.faults["weights"] = ["truncate", "truncate"]
    assert get(server, tmp_path / "weights") == SHA256
    assert [wanted for _, wanted in server.requests] == [None, "bytes=150000-", "bytes=225000-"]


@pytest.mark.parametrize("fault", ["stall", "trickle"])
def test_a_stalled_transfer_is_given_up_and_resumed(server: FaultyServer, tmp_path: Path, fault: str) -> None:
    server.etags["weights"] = '"one"'
    server.faults["weights"] = [fault]
    assert get(server, tmp_path / "weights") == SHA256
    assert len(server.requests) == 2
    assert server.requests[1][1] is not None


def test_a_corrupted_transfer_is_fetched_again_from_nothing(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["weights"] = ["corrupt"]
    assert get(server, tmp_path / "weights") == SHA256
    assert [wanted for _, wanted in server.requests] == [None, None]


def test_content_that_stays_wrong_is_refused_naming_both_digests(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["weights"] = ["corrupt"] * 9
    with pytest.raises(WeightsUnavailable, match=f"expected sha256 {SHA256}, got [0-9a-f]{{64}}, twice"):
        get(server, tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []


def test_another_size_than_published_is_refused_before_fetching(server: FaultyServer, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="expected 5 bytes, the server offers 300000"):
        fetch(RemoteFile(server.url("weights"), 5, SHA256), tmp_path / "weights", patience=QUICK)
    assert server.sent["weights"] == 0 or not (tmp_path / "weights").exists()


def test_a_server_without_ranges_gives_the_whole_file_again(server: FaultyServer, tmp_path: Path) -> None:
    server.without_ranges = True
    server.faults["weights"] = ["truncate"]
    assert get(server, tmp_path / "weights") == SHA256
    assert (tmp_path / "weights").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_spliced(server: FaultyServer, tmp_path: Path) -> None:
    """If-Range: with a new ETag the server answers with the whole new file, checksum known or not."""
    server.etags["weights"] = '"old"'
    server.faults["weights"] = ["truncate", "503", "503", "503"]
    with pytest.raises(WeightsUnavailable, match=r"503.*150000 bytes are kept"):
        get(server, tmp_path / "weights", sha256=None)
    server.files["weights"], server.etags["weights"] = CONTENT[::-1], '"new"'
    assert get(server, tmp_path / "weights", sha256=None) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_without_checksum_and_validator_nothing_is_resumed(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["weights"] = ["truncate"]
    assert get(server, tmp_path / "weights", sha256=None) == SHA256
    assert [wanted for _, wanted in server.requests] == [None, None]


def test_a_kept_part_is_continued_by_the_next_run(server: FaultyServer, tmp_path: Path) -> None:
    server.etags["weights"] = '"one"'
    server.faults["weights"] = ["truncate", "503", "503", "503"]
    with pytest.raises(WeightsUnavailable, match=r"given up after 3 tries.*run the command again"):
        get(server, tmp_path / "weights")
    assert (tmp_path / "weights.part").stat().st_size == 150_000
    server.requests.clear()
    assert get(server, tmp_path / "weights") == SHA256
    assert server.requests == [("weights", "bytes=150000-")]


def test_a_part_longer_than_the_file_is_thrown_away(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "weights.part").write_bytes(b"x" * 400_000)
    assert get(server, tmp_path / "weights") == SHA256


def test_a_whole_part_needs_no_connection(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "weights.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "weights") == SHA256
    assert server.requests == []


@pytest.mark.parametrize("status", ["429", "500", "503"])
def test_busy_servers_are_asked_again(server: FaultyServer, tmp_path: Path, status: str) -> None:
    server.faults["weights"] = [status, status]
    assert get(server, tmp_path / "weights") == SHA256
    assert len(server.requests) == 3


@pytest.mark.parametrize(("path", "fault", "status"), [("gone", "", "404"), ("weights", "403", "403")])
def test_refusals_are_final_and_say_what_to_do(
    server: FaultyServer, tmp_path: Path, path: str, fault: str, status: str
) -> None:
    server.faults[path] = [fault] if fault else []
    with pytest.raises(WeightsUnavailable, match=rf"{path}: HTTP {status}.*--from"):
        get(server, tmp_path / "weights", path=path)
    assert len(server.requests) == 1


def test_a_login_page_is_not_taken_for_weights(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["weights"] = ["page"]
    with pytest.raises(WeightsUnavailable, match="web page"):
        fetch(RemoteFile(server.url("weights")), tmp_path / "weights", patience=QUICK)
    assert not (tmp_path / "weights").exists()


def test_no_length_is_no_obstacle(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["weights"] = ["nolength"]
    assert get(server, tmp_path / "weights") == SHA256


def test_redirects_are_followed_and_keep_the_range(server: FaultyServer, tmp_path: Path) -> None:
    server.redirects = {"latest": "/moved", "moved": server.url("weights")}
    server.etags["weights"] = '"one"'
    server.faults["weights"] = ["truncate"]
    assert get(server, tmp_path / "weights", path="latest") == SHA256
    assert server.requests[-1] == ("weights", "bytes=150000-")


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/weights", "data:,x", "gopher://x/"])
def test_redirects_to_other_schemes_are_refused(server: FaultyServer, tmp_path: Path, place: str) -> None:
    server.redirects["latest"] = place
    with pytest.raises(WeightsUnavailable, match=r"expected an http or https address|is not allowed"):
        get(server, tmp_path / "weights", path="latest")
    assert not (tmp_path / "weights").exists()


def test_a_redirect_from_https_down_to_http_is_refused() -> None:
    request = urllib.request.Request("https://example.org/weights")
    with pytest.raises(WeightsUnavailable, match="plain http"):
        HttpOnlyRedirects().redirect_request(request, None, 302, "Found", {}, "http://example.org/weights")


def test_a_redirect_loop_ends(server: FaultyServer, tmp_path: Path) -> None:
    server.redirects = {"a": "/b", "b": "/a"}
    with pytest.raises(WeightsUnavailable, match="HTTP 302"):
        get(server, tmp_path / "weights", path="a")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/x", "weights.zip"])
def test_only_http_addresses_are_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(WeightsUnavailable, match="expected an http or https address"):
        fetch(RemoteFile(url), tmp_path / "weights")


def test_a_dead_server_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with serve(FaultyServer()) as gone:
        address = gone.url("weights")
    with pytest.raises(WeightsUnavailable, match=r"refused.*given up after 3 tries"):
        fetch(RemoteFile(address), tmp_path / "weights", patience=QUICK)


def test_two_downloads_at_once_do_not_disturb_each_other(server: FaultyServer, tmp_path: Path) -> None:
    server.files["other"] = CONTENT[::-1]
    server.etags.update(weights='"a"', other='"b"')
    server.faults.update(weights=["truncate", "500"], other=["500", "truncate"])
    got: dict[str, str] = {}

    def run(path: str) -> None:
        got[path] = fetch(RemoteFile(server.url(path)), tmp_path / path, patience=QUICK)

    threads = [threading.Thread(target=run, args=(path,)) for path in ("weights", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {"weights": SHA256, "other": hashlib.sha256(CONTENT[::-1]).hexdigest()}
