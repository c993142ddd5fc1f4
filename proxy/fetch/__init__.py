"""Gets missing items from the upstream: single-flight, merged calls, failover, concurrency limits.

Nothing here reads a client's connection or builds its response.
"""
