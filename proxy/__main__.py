"""``python -m proxy`` is the command ``embedding-proxy``."""

import os
import signal


def _interrupted(*_: object) -> None:
    os.write(2, b"embedding-proxy: interrupted\n")
    os._exit(130)


def main() -> None:
    # Importing takes a second. In that time, Ctrl-C could raise an exception anywhere.
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    from proxy.cli import commands  # noqa: PLC0415

    signal.signal(signal.SIGINT, before)
    commands.main()


if __name__ == "__main__":
    main()
