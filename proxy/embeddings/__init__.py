"""The cached route: one request from its body to its response, and the shortcuts for requests seen before.

How misses are fetched belongs in `proxy.fetch`, and what JSON and keys mean in `proxy.protocol`.
"""
