"""What signals, and the end of a pipe, mean to one process."""

import asyncio
import os
import signal
import sys


def stop_signal(parent: int | None = None) -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT. The second ends the process at once, which can't tear a stored entry.

    A worker has ``parent``, a pipe that ends with its supervisor, and stops when the pipe ends. It leaves SIGINT and a
    second signal to the supervisor, because a signal to the whole process group reaches the worker twice: directly, and
    through the supervisor.
    """
    stop = asyncio.Event() if parent is None else end_of(parent)

    def on_signal() -> None:
        if stop.is_set() and parent is None:
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_signal)
    if parent is None:
        loop.add_signal_handler(signal.SIGINT, on_signal)
    return stop


def end_of(pipe: int) -> asyncio.Event:
    """Set when no process can write to ``pipe`` any more."""
    end = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_end() -> None:
        loop.remove_reader(pipe)
        end.set()

    loop.add_reader(pipe, on_end)
    return end


def has_terminal() -> bool:
    """Whether SIGHUP means that the terminal has closed."""
    return sys.stdin is not None and sys.stdin.isatty()
