"""A signal asks; the second does what it always did."""

import os
import signal
import threading

import pytest

from lorarlhf.signals import stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_only_asks(number, capfd):
    before = signal.getsignal(number)
    with stop_request() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        assert request.signal == number
        assert signal.getsignal(number) == before, "the second is not waited for"
    assert signal.getsignal(number) == before
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_the_second_stops_at_once():
    with stop_request():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_takes_no_signals():
    asked = []

    def work():
        with stop_request() as request:
            asked.append(request.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [None]
