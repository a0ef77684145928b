"""How a Redis server is reached: names, files and limits; the secret is never shown."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from pitr.errors import DerivedRefused


@dataclass(frozen=True, slots=True)
class RedisTls:
    """Whom to trust and who we are.  ``ca_file`` None: whom the system trusts."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    # A cluster names its nodes by addresses, and certificates are often made out to one name for all.
    checks_names: bool = True

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection.  Raises DerivedRefused for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.check_hostname = self.checks_names
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except OSError as error:
            raise DerivedRefused(
                "the TLS files for Redis cannot be used",
                detail=error.strerror or str(error),
                hint="see ca_file, certificate_file and key_file of [[redis]]",
            ) from error
        return context


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """What every connection to a site needs.  ``timeout_s`` bounds each wait for an answer."""

    timeout_s: float
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: RedisTls | None = None

    def redact(self, text: str) -> str:
        """Return a server's words without the password, which some echo, and not too long."""
        if self.password:
            text = text.replace(self.password, "***")
        return "".join(each if each.isprintable() else " " for each in text)[:200]
