"""Every other route: requests, responses and WebSockets streamed both ways.

Nothing here reads or stores a vector.
"""
