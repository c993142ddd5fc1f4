"""``python -m proxy`` is the command ``embedding-proxy``."""

from proxy.cli.commands import main

if __name__ == "__main__":
    main()
