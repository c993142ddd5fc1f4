"""The store in one SQLite file, shared by the processes of a machine; damaged files are set aside.

Values are opaque bytes here.
"""
