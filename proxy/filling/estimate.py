"""How many tokens a text probably has (pure)."""

# A token has about four bytes of English text, and fewer in most other scripts, whose characters have more bytes.
_BYTES_OF_TOKEN = 4


def estimated_tokens(text: str) -> int:
    """A typical number of tokens of a text; vocabularies differ by a third either way."""
    return -(-len(text.encode()) // _BYTES_OF_TOKEN)
