"""What a cache would have saved: corpora and request logs read, identified as the proxy does, counted, and replayed
against caches of several sizes.

Nothing here asks an upstream or opens a store.
"""
