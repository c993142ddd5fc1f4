"""The proxy's own errors as HTTP responses."""

from aiohttp import web

from proxy.errors import BudgetSpent, ProxyError, RequestTimeout


def error_response(error: ProxyError) -> web.Response:
    response = web.Response(status=error.status, body=error.body(), content_type="application/json")
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, BudgetSpent):
        response.headers["X-Budget-Remaining-Tokens"] = "0"
    if isinstance(error, RequestTimeout):
        response.force_close()  # the rest of the body, if it arrives, must not be read as a request
    return response


def error_bytes(error: ProxyError) -> bytes:
    """The last response on a connection, for a client that has sent no complete request."""
    body = error.body()
    retry = "" if error.retry_after_s is None else f"Retry-After: {error.retry_after_s}\r\n"
    head = (
        f"HTTP/1.1 {error.status} {error.code}\r\nContent-Type: application/json\r\n{retry}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
