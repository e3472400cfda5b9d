"""Whose certificates are trusted: this machine's own bundle, whatever interpreter we run on."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

_BUNDLES: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def trusted_certificates() -> ssl.SSLContext:
    """What SSL_CERT_FILE names, else the system's bundle."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        # An interpreter that was built elsewhere looks for the bundle elsewhere.
        found = next((path for path in _BUNDLES if Path(path).is_file()), None)
        if found:
            context.load_verify_locations(found)
    return context
