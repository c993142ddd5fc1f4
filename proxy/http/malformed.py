"""The errors of aiohttp's HTTP parser, as errors of the proxy.

The parser's message quotes the bytes that it could not parse, which may be a credential. It is never sent or logged.
"""

import logging

from aiohttp.http_exceptions import HttpProcessingError, InvalidHeader, InvalidURLError, LineTooLong

from proxy.errors import FieldsTooLarge, InvalidRequest, ProxyError, TargetTooLong

# Some gateways forward large tokens. The parser counts a field's name with its value. It raises one exception for both
# limits, and only the number in it shows which limit was exceeded. So the two numbers must differ.
MAX_TARGET_BYTES = 64 * 1024
MAX_FIELD_BYTES = 64 * 1024 + 128
MAX_FIELDS = 128
# The parser has no separate exception for this.
_TOO_MANY_FIELDS = "Too many headers received"

# For aiohttp's own server (admin port, demo): everything it logs except parser errors, which quote the request.
HTTP_LOG = logging.getLogger("proxy.http.aiohttp")
HTTP_LOG.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))


def error_of(error: HttpProcessingError) -> ProxyError:
    match error:
        case LineTooLong(args=(_, limit, *_)) if limit == MAX_TARGET_BYTES:
            return TargetTooLong(f"The request target is longer than {MAX_TARGET_BYTES} bytes.")
        case LineTooLong():
            return FieldsTooLarge(f"A header field is longer than {MAX_FIELD_BYTES} bytes.")
        case InvalidURLError():
            return InvalidRequest("The request target is not a valid URL.")
        case InvalidHeader():
            return InvalidRequest("A header field is not valid.")
        case HttpProcessingError(message=message) if message == _TOO_MANY_FIELDS:
            return FieldsTooLarge(f"The request has more than {MAX_FIELDS} header fields.")
    return InvalidRequest("The request is not valid HTTP/1.1.")
