"""What an upstream accepts and how it answers, found by asking it, and the settings that follow from that.

Nothing here knows the proxy's cache or its clients.
"""
