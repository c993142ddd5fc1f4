"""Why a request is cached, joined or relayed as it is: explained by the tables and the code that decide it.

Nothing here sends a request or decides anything about one.
"""
