"""Who may be served: the proxy's own client keys, and credentials that the upstream has accepted.

No I/O but reading and writing the file of client keys.
"""
