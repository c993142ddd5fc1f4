"""The store in Redis or Valkey: one server, a cluster, or the master that Sentinel names.

Values are opaque bytes here.
"""
