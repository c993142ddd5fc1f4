"""The head of a response to a request that was not parsed."""

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE

from proxy.embeddings.cache_headers import CACHE_NAME


def head(length: int, saved: int, detail: str, *, cors: str, request_id: str) -> bytes:
    """What aiohttp would write for a hit with a body of ``length`` bytes. ``cors`` are whole lines, or ""."""
    detail = f"; detail={detail}" if detail else ""
    return (
        f"HTTP/1.1 200 OK\r\nX-Cache: HIT\r\nCache-Status: {CACHE_NAME}; hit{detail}\r\n"
        f"X-Cache-Saved-Tokens: {saved}\r\nContent-Type: application/json\r\n{cors}X-Request-Id: {request_id}\r\n"
        f"Content-Length: {length}\r\nDate: {rfc822_formatted_time()}\r\n"
        f"Server: {SERVER_SOFTWARE}\r\n\r\n"
    ).encode()
