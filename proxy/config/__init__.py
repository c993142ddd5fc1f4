"""Settings as frozen values, and how their texts and the configuration file are parsed.

No flags and no environment variables (`proxy.cli`), and no I/O but checking that files exist.
"""
