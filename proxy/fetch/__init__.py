"""Gets missing items from the upstream: single-flight, merged calls, failover, concurrency limits.

Nothing here sees a client's HTTP request or builds its response.
"""
