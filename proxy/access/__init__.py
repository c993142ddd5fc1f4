"""Access control: the proxy's own client keys, and credentials that the upstream has accepted.

The only I/O is reading and writing the file of client keys.
"""
