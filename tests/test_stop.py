"""Signals ask for a stop, and the handlers that were there come back."""

from __future__ import annotations

import signal
import threading

import pytest

from facefix.stop import Stop, stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_requests_the_stop(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with stopping(Stop()) as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop and stop.signal == number
        assert signal.getsignal(number) == signal.SIG_DFL, "a second one ends the process"
    assert signal.getsignal(number) == before
    assert "once more to stop at once" in capsys.readouterr().err


def test_another_thread_leaves_the_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with stopping(Stop()) as stop:
            seen.append((signal.getsignal(signal.SIGINT), bool(stop)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
