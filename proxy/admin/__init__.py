"""The admin port: health, metrics, the status page and its numbers, added up over workers.

Nothing here handles the data port or changes what it serves.
"""
