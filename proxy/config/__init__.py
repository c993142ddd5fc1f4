"""Settings as frozen values, and how the operator's texts are parsed into them.

No flags and no environment variables (`proxy.cli`), and no I/O.
"""
