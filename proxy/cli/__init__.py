"""The command line: its commands, and text for the terminal.

Nothing here serves a request. No other package reads flags or the environment.
"""
