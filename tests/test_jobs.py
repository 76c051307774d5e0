"""Signals wait for the step, and are left alone by a thread that can't have them."""

import signal
import threading

from system.locks import Interrupt


def test_interrupt_waits_for_the_step():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.received == 'SIGTERM'
        again = signal.getsignal(signal.SIGTERM)
        assert again == before[0], 'a second one must end the process as usual'
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_another_thread_does_without_signals(capsys):
    """As where a notebook or a server trains in one."""
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interrupt() as interrupt:
            found.append((interrupt.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)] and 'not in the main thread' in capsys.readouterr().out
