"""The command line: flags, environment and files become settings; text for the terminal.

Nothing here serves a request. No other package reads flags or the environment.
"""
