"""What replicas of one service on one machine tell each other: they share a port, so the one asked answers for all.

Each listens on a unix socket in one folder and tells its own figures to whoever connects; the one that a scrape reaches
asks the others. Nothing of it is on the path of a read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import structlog

from featurelib.settings import Settings

_log = structlog.get_logger("thyme.serve")
# A scrape waits for all of them, and a scraper gives up after ten seconds.
_ANSWER_S = 0.5
_CHUNK = 65_536
_FIRST_OF_HEAD, _REST_OF_HEAD = b"# HELP ", b"# TYPE "
_NAME = re.compile(rb"[^{ ]+")


class Told(NamedTuple):
    """The figures of a service's replicas, in Prometheus text by replica; ``silent``: who did not answer."""

    figures: Mapping[str, bytes]
    silent: tuple[str, ...]


class Siblings:
    """The replicas of one service on this machine, of which this process is one.

    Args:
        folder: where their sockets lie; ``None``: this replica has its port to itself.
        service: which service.
        pid: of this process.
    """

    def __init__(self, folder: Path | None = None, service: str = "", pid: int | None = None) -> None:
        self._folder = folder
        self._service = service
        self.name = str(os.getpid() if pid is None else pid)

    @classmethod
    def of(cls, settings: Settings, service: str) -> Siblings:
        """Those that take their listening sockets from the same holder."""
        shared = settings.listener_socket
        return cls(Path(shared).parent / "replicas" if shared else None, service)

    @property
    def is_alone(self) -> bool:
        """Whether there can be no others."""
        return self._folder is None

    @asynccontextmanager
    async def joined(self, figures: Callable[[], bytes]) -> AsyncIterator[None]:
        """Tell this replica's figures to whoever asks, until the block ends.

        Args:
            figures: gives them; called in a thread.
        """
        server = None if self._folder is None else await self._listening(self._place(self._folder), figures)
        try:
            yield
        finally:
            if server is not None and self._folder is not None:
                server.close()
                self._place(self._folder).unlink(missing_ok=True)

    async def _listening(self, place: Path, figures: Callable[[], bytes]) -> asyncio.Server | None:
        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):  # whoever asked is gone
                writer.write(await asyncio.to_thread(figures))
                await writer.drain()
            writer.close()

        try:
            door = _door(place)
        except OSError as error:
            # A replica that cannot be scraped through the others serves all the same.
            _log.warning("figures_not_told", place=str(place), error=str(error))
            return None
        return await asyncio.start_unix_server(tell, sock=door)

    def told(self) -> Told:
        """Ask the others. Blocks, half a second for each that hangs."""
        figures: dict[str, bytes] = {}
        silent: list[str] = []
        for place in self._others():
            name = place.stem.rpartition("-")[2]
            try:
                figures[name] = _asked(place)
            except OSError:
                if _is_over(int(name)):
                    place.unlink(missing_ok=True)
                else:
                    silent.append(name)
        return Told(figures, tuple(silent))

    def _others(self) -> list[Path]:
        if self._folder is None:
            return []
        found = (each for each in self._folder.glob(f"{self._service}-*.sock") if each != self._place(self._folder))
        return sorted(each for each in found if each.stem.rpartition("-")[2].isdecimal())

    def _place(self, folder: Path) -> Path:
        return folder / f"{self._service}-{self.name}.sock"


def labelled(figures: Mapping[str, bytes]) -> bytes:
    """Texts of several replicas as one: each sample with the label ``replica``, each family once."""
    families: dict[bytes, list[bytes]] = {}
    for name, text in figures.items():
        label = b'replica="%b"' % name.encode()
        for head, samples in _families(text):
            families.setdefault(head, []).extend(_with_label(sample, label) for sample in samples)
    return b"".join(head + b"".join(samples) for head, samples in families.items())


def _families(text: bytes) -> Iterable[tuple[bytes, list[bytes]]]:
    """What is said of each family, and its samples."""
    head, samples = b"", list[bytes]()
    for line in text.splitlines(keepends=True):
        if line.startswith(_FIRST_OF_HEAD):  # also after a family without samples, such as one of errors
            if head:
                yield head, samples
            head, samples = line, []
        elif line.startswith(_REST_OF_HEAD):
            head += line
        else:
            samples.append(line)
    if head:
        yield head, samples


def _with_label(sample: bytes, label: bytes) -> bytes:
    name = _NAME.match(sample)
    assert name is not None  # the client library wrote it
    rest = sample[name.end() :]
    return b"%b{%b,%b" % (name[0], label, rest[1:]) if rest[:1] == b"{" else b"%b{%b}%b" % (name[0], label, rest)


def _door(place: Path) -> socket.socket:
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        door.bind(str(place))
        place.chmod(0o600)
    except OSError:
        door.close()
        raise
    return door


def _asked(place: Path) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWER_S)
        client.connect(str(place))
        text = b"".join(iter(lambda: client.recv(_CHUNK), b""))
    if not text.endswith(b"\n"):
        message = f"the replica at {place} ended amid its figures"
        raise ConnectionResetError(message)
    return text


def _is_over(pid: int) -> bool:
    """Whether the process that a socket belongs to has ended: one that only begins to listen refuses too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
