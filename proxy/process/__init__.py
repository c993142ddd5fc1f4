"""Operating system processes: signals, readiness, draining, and the supervisor of `--workers`.

Nothing here knows what a request is. How the parts of a proxy fit together belongs in `proxy.app`.
"""
