"""The store in one SQLite file, shared by the processes of a machine; damaged files are set aside.

Nothing here knows what the stored bytes mean.
"""
