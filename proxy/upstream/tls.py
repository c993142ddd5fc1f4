"""TLS to one upstream: contexts from PEM files, and a stamp that shows when the files change."""

import re
import ssl
from pathlib import Path

from proxy.errors import ConfigError
from proxy.upstream.egress import Egress

_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
_ENCRYPTED_KEY = re.compile(r"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED")
_DER = b"\x30\x82"

Stamp = tuple[int, int, int] | None


def make_context(egress: Egress) -> ssl.SSLContext:
    """Raises `ConfigError` for files that can't be used."""
    context = ssl.create_default_context() if egress.ca is None else _trusting(egress.ca)
    context.set_alpn_protocols(["http/1.1"])
    if egress.cert is not None:
        _load_client_certificate(context, egress.cert, egress.cert_key or egress.cert)
    return context


def stamps(egress: Egress) -> list[Stamp]:
    """Values that differ once a file has changed. A Kubernetes volume replaces the files at a path, so the inode
    counts as well as the time."""
    return [_stamp(path) for path in (egress.ca, egress.cert, egress.cert_key) if path]


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _trusting(ca: Path) -> ssl.SSLContext:
    """Trust the authorities in this file and no others."""
    text = _read(ca, "the CA file")
    if _CERTIFICATE not in text:
        raise ConfigError(f"the CA file {ca} has no certificate in PEM form{_der_hint(ca)}")
    try:
        context = ssl.create_default_context(cadata=text)
    except ssl.SSLError as error:
        raise ConfigError(f"the CA file {ca} can't be read: {error.reason or error}") from error
    # Python 3.13 sets VERIFY_X509_STRICT. Many corporate authorities fail its rules (no key usage, no key identifier),
    # and the operator has named this one. VERIFY_X509_PARTIAL_CHAIN lets the named authority be an intermediate.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load_client_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    if _CERTIFICATE not in _read(cert, "the client certificate"):
        raise ConfigError(f"{cert} has no certificate in PEM form{_der_hint(cert)}")
    text = _read(key, "the client certificate's key")
    if _ENCRYPTED_KEY.search(text):
        raise ConfigError(
            f"the key in {key} is encrypted and the proxy can't prompt for its password;"
            f" decrypt it: openssl pkey -in {key} -out FILE"
        )
    if not _PRIVATE_KEY.search(text):
        hint = "; give --upstream-cert-key, or cert_key in an [[upstream]] table" if key == cert else ""
        raise ConfigError(f"{key} has no private key in PEM form{hint}")
    try:
        # Without a password the library would prompt for one at the terminal.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            raise ConfigError(
                f"the key in {key} is not that of the first certificate in {cert}; a chain begins with the client's own"
            ) from error
        raise ConfigError(f"{cert} and {key} can't be used: {error.reason or error}") from error
    except OSError as error:  # replaced since they were read
        raise ConfigError(f"{cert} and {key} can't be used: {error.strerror}") from error


def _read(path: Path, what: str) -> str:
    try:
        return path.read_bytes().decode("ascii", errors="ignore")  # bundles have names in comments
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from error


def _der_hint(path: Path) -> str:
    try:
        beginning = path.read_bytes()[: len(_DER)]
    except OSError:  # replaced since it was read
        return ""
    if beginning != _DER:
        return ""
    return f"; it is DER: openssl x509 -inform DER -in {path} -out FILE"
