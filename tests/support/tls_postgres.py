"""A PostgreSQL server that speaks TLS over TCP: the system's own, since the wheel's is built without it.

Two authorities sign nothing but themselves: ``certificate`` is the server's, ``stranger`` belongs to nobody here.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.processes import wait_until
from featurelib.clock import SystemClock, to_datetime

PASSWORD = "Kept9Quiet"
_START_SECONDS = 30.0


class TlsPostgres:
    """One server over one data directory, with a user that needs a password."""

    def __init__(self, home: Path, programs: Path) -> None:
        self.home = home
        self.port = _free_port()
        self.certificate = home / "server.pem"
        self.stranger = home / "stranger.pem"
        self._programs = programs
        self._as: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make its data, and start it."""
        _write_pair(self.certificate, self.home / "server.key")
        _write_pair(self.stranger, self.home / "stranger.key")
        (self.home / "password").write_text(PASSWORD)
        (self.home / "server.key").chmod(0o600)
        if self._as:
            owner = pwd.getpwnam("postgres")
            for path in (self.home, *self.home.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        data = self.home / "data"
        made = [self._programs / "initdb", "-D", data, "-U", "owner", "-A", "scram-sha-256"]
        self._run([*made, "--pwfile", self.home / "password", "-E", "utf8", "--locale", "C", "--no-sync"])
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", data, *self._options()], stdout=log, stderr=log, **self._as
            )
        self._await_answer()

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.terminate()  # SIGTERM: a smart shutdown, which waits for clients to leave
            self._process.wait(timeout=_START_SECONDS)

    def config(self, **more: Any) -> dict[str, Any]:
        """Settings of a connector that reads it."""
        connection = {"host": "localhost", "port": self.port, "database": "postgres", "user": "owner"}
        return {**connection, "password": PASSWORD, **more}

    def _options(self) -> list[str]:
        options = {
            "listen_addresses": "localhost",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": self.certificate,
            "ssl_key_file": self.home / "server.key",
        }
        return [part for name, value in options.items() for part in ("-c", f"{name}={value}")]

    def _run(self, command: list[Any]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._as)
        assert not done.returncode, done.stderr

    def _await_answer(self) -> None:
        ready = [self._programs / "pg_isready", "-h", "localhost", "-p", str(self.port), "-q"]
        answers = wait_until(lambda: not subprocess.run(ready, check=False).returncode, _START_SECONDS, every_s=0.02)
        assert answers, (self.home / "server.log").read_text()


@pytest.fixture(scope="module")
def tls_postgres() -> Iterator[TlsPostgres]:
    """The server, where the system has one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("needs the system's PostgreSQL (Debian: postgresql)")
    home = Path(tempfile.mkdtemp(prefix="ts"))
    server = TlsPostgres(home, found[-1])
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(home)


def _write_pair(certificate: Path, key: Path) -> None:
    """A key, and a certificate for ``localhost`` that it signs itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, certificate.stem)])
    now = to_datetime(SystemClock().now())
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(form, kind, serialization.NoEncryption()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
