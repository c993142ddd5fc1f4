"""The store in Redis or Valkey: one server, a cluster, or the master that Sentinel names.

Nothing here knows what the stored bytes mean.
"""
