"""Work on a store's entries as a whole, beside the proxies that use it: checked, moved, filled and cleared.

Nothing here serves a request.
"""
