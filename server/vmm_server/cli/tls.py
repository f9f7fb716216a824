"""TLS: the certificate that a server shows, from two files."""

import logging
import ssl
from pathlib import Path
from typing import NoReturn

from vmm_server.errors import SettingsError
from vmm_server.settings import Settings

logger = logging.getLogger(__name__)


class _Encrypted(Exception):
    """The key has a password, for which OpenSSL would ask on the terminal."""


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """What to serve https with; `None` for plain http. Raises `SettingsError` naming the file that is wrong."""
    files = _files(settings)
    return None if files is None else _loaded(*files)


def renew(context: ssl.SSLContext, settings: Settings) -> None:
    """Read the files again: connections that begin from now on see the new certificate. What is wrong is logged, and
    all stays as it was."""
    try:
        files = _files(settings)
        if files is None:
            raise SettingsError("https becomes http with a restart alone")
        _loaded(*files)  # on a context of its own first: a failure leaves one half changed
        context.load_cert_chain(*files)
    except (SettingsError, OSError) as error:
        logger.error("the certificate stays as it was: %s", error)


def _files(settings: Settings) -> tuple[Path, Path] | None:
    if settings.tls_certificate is None and settings.tls_key is None:
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        missing = "tls_key" if settings.tls_key is None else "tls_certificate"
        message = f"setting {missing}: a certificate and its key go together, and this one is not set"
        raise SettingsError(message, param=missing)
    return settings.tls_certificate, settings.tls_key


def _loaded(certificate: Path, key: Path) -> ssl.SSLContext:
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise SettingsError(f"setting {name}: {path}: {error.strerror}", param=name) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
    except ssl.SSLError as error:
        raise SettingsError(
            f"setting tls_certificate: {certificate} holds no certificate in PEM", param="tls_certificate"
        ) from error
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except _Encrypted as error:
        hint = f"write it without one: openssl pkey -in {key} -out plain.pem"
        raise SettingsError(f"setting tls_key: {key} has a password", param="tls_key", hint=hint) from error
    except ssl.SSLError as error:
        wrong = (
            f"is not the key of the certificate in {certificate}" if _differ(error) else "holds no private key in PEM"
        )
        raise SettingsError(f"setting tls_key: {key} {wrong}", param="tls_key") from error
    return context


def _differ(error: ssl.SSLError) -> bool:
    return error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")


def _refuse_password() -> NoReturn:
    raise _Encrypted
