"""``python -m proxy`` is the command ``embedding-proxy``."""

import os
import signal
import sys


def _interrupted(*_: object) -> None:
    os.write(2, b"embedding-proxy: interrupted\n")
    os._exit(130)


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        # A reload must not end a proxy that is about to start: it waits until `proxy.process.run` handles it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Importing takes a second. In that time, Ctrl-C could raise an exception anywhere.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    from proxy.cli import commands  # noqa: PLC0415

    signal.signal(signal.SIGINT, before)
    commands.main()


if __name__ == "__main__":
    main()
