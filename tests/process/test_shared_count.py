"""A number that one process counts, and its children can read."""

import subprocess
import sys

# In a process of its own: the one of the tests has threads, which a fork could interrupt.
_COUNTING = """
import os
from proxy.process.shared_count import SharedCount
count = SharedCount()
count.add_one()
counted, ready = os.pipe()
if os.fork() == 0:
    os.read(counted, 1)
    print(count.value())
else:
    count.add_one()
    os.write(ready, b".")
    os.wait()
"""


def test_a_child_reads_what_its_parent_counts_later() -> None:
    run = subprocess.run([sys.executable, "-c", _COUNTING], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "2\n"
