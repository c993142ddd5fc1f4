"""Runs the Python clients of one environment, each in a process of its own that is forked from this one.

Importing a client takes a second or more. This process has imported them all, once; what else a program imports, it
imports itself. Arguments: a UNIX socket's descriptor, and the names of the packages.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys


def main() -> None:
    asked = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a program
    # Each message has a program's module and arguments, and brings its stdin and stdout.
    while message := socket.recv_fds(asked, 4096, 2):
        content, descriptors, *_ = message
        if not content:
            return
        if not os.fork():
            asked.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(*json.loads(content), descriptors=descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


def _run(module: str, *arguments: str, descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
