"""Signals that ask a run to stop: heard by its ranks, and kept until all act on them together."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

DUPLICATE_SECONDS = 3.0


def hear_signals() -> None:
    """Undo what the launcher handed down: it ignores SIGUSR1, and so would its ranks."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


class StopRequest:
    """SIGTERM, SIGUSR1 (Slurm's warning) and Ctrl-C as a flag that all ranks act on together.

    One that comes again more than `DUPLICATE_SECONDS` later ends the process at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.signal_name = ""
        self._since = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Install the handlers for the duration of a `with` block."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._note) for number in self.SIGNALS
        }
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        # Slurm and launchers pass one signal on by several ways; a person's second one comes later.
        if self.signal_name and time.monotonic() - self._since > DUPLICATE_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.signal_name:
            self.signal_name, self._since = signal.Signals(number).name, time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether this rank was told to stop; the engine asks all ranks together."""
        return bool(self.signal_name)
