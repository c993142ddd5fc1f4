"""Bytes and fields as typed values, and back: requests, responses, headers, keys, vectors, stored records.

Pure: no I/O, no asyncio, no clock, no environment; an import contract enforces it. docs/design.md lists the
modules by subject.
"""
