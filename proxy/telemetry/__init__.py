"""What operators observe: metrics, log lines, traces.

Nothing here decides anything about a request.
"""
