"""Decides when a call may go to an upstream, and in which order what waits for that leaves.

All of it is pure: times and responses in, times out. What sends the calls and what waits is in `proxy.fetch`.
"""
