"""The cache: a memory tier in front of one store, which may be absent or fail.

No HTTP here. The format of records belongs in `proxy.protocol.records`.
"""
