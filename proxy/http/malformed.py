"""The errors of aiohttp's HTTP parser, as the proxy's own.

The parser quotes what it could not read, which may be a credential. Nothing of its message goes further.
"""

import logging

from aiohttp.http_exceptions import HttpProcessingError, InvalidHeader, InvalidURLError, LineTooLong

from proxy.errors import FieldsTooLarge, InvalidRequest, ProxyError, TargetTooLong

# Some gateways pass on large tokens. The parser counts a field's name with its value. One exception reports both
# limits and says only which number was exceeded, so the numbers must differ.
MAX_TARGET_BYTES = 64 * 1024
MAX_FIELD_BYTES = 64 * 1024 + 128
MAX_FIELDS = 128
# The parser has no exception of its own for this.
_TOO_MANY_FIELDS = "Too many headers received"

# For aiohttp's server on ports whose handlers are aiohttp's own: what it logs, but for what it could not parse.
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
