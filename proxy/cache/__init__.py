"""The cache: a memory tier in front of one store, which may be absent or fail.

Nothing here knows about HTTP. What a record's bytes mean belongs in `proxy.protocol.records`.
"""
