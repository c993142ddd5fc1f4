"""Where records are kept: a memory tier in front of one store."""
