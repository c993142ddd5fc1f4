"""Operating system processes: signals, readiness, draining, and the supervisor of `--workers`.

Nothing here handles requests. How the parts of a proxy fit together belongs in `proxy.app`.
"""
