"""Whether an upstream still computes the vectors that it once did: a few texts are embedded again and compared.

Nothing here handles a client's request.
"""
