"""A body that is taken while it comes, on a real connection: its sender is held back, may leave, may be refused."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cluster.processes import wait_until
from cluster.sockets import bind_listener
from featurelib.cli import app
from featurelib.compile import compile_module
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from featurelib.stores.spine_sources import open_spine
from jobs.requested_training import make
from jobs.training_set import read_here
from serve_apps import connection
from serve_apps.intake_service import IntakeService
from serve_apps.listener import Listener
from serve_apps.routes.training_sets import PARQUET
from serve_apps.routes.training_sets import PATH as TRAINING_SETS
from serve_apps.services import open_services
from serve_apps.web import Application
from tests.api.test_connections import Client
from tests.api.test_idempotency import ride
from tests.support.patience import PATIENCE_S

MB = 2**20
PARTITIONS = 2


@pytest.fixture
def secret(settings, clock) -> str:
    registry = Registry(settings.registry_url, clock)
    _, secret = registry.create_key("writer", "writer")
    registry.close()
    return secret


@contextmanager
def serving(settings, clock, secret) -> Iterator[int]:
    """The port of a listener with the rides committed."""
    listening = bind_listener("127.0.0.1", 0)
    # Else the system keeps up to 32 MB of what nobody has read yet.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
    running = Listener(Application(lambda: open_services(settings, clock)), listening)
    running.start()
    try:
        commit = compile_module(Path(__file__).parent / "rides.py")
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"http://127.0.0.1:{running.port}/api/v1/commit"
        assert httpx2.post(url, content=commit.model_dump_json(), headers=headers, timeout=PATIENCE_S).is_success
        yield running.port
    finally:
        running.stop()


@contextmanager
def connected(port: int) -> Iterator[Client]:
    made = Client(port)
    yield made
    made.reader.close()
    made.socket.close()


@pytest.fixture
def port(settings, clock, secret) -> Iterator[int]:
    with serving(settings, clock, secret) as port:
        yield port


@pytest.fixture
def log(settings, clock) -> Iterator[Log]:
    made = Log(settings.online.redis_url.get_secret_value(), clock)
    yield made
    made.close()


@pytest.fixture
def client(port) -> Iterator[Client]:
    with connected(port) as made:
        yield made


def head(secret: str, *more: str, kind: str = "application/x-ndjson") -> bytes:
    first = "POST /api/v1/log?dataset=Ride HTTP/1.1"
    lines = [first, "Host: x", f"Content-Type: {kind}", f"Authorization: Bearer {secret}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def line(number: int, size: int = 1_000) -> bytes:
    return json.dumps(ride(number, city="x" * size)).encode() + b"\n"


def held(log: Log) -> int:
    return sum(part.next_offset for part in log.heads("Ride@1", PARTITIONS))


def sent_events(client: Client) -> int:
    status, _, body = client.answer()
    assert status == 200, body
    return int(json.loads(body)["events_sent"])


def test_a_body_of_unknown_length_is_taken_and_the_connection_goes_on(client, secret, log):
    many = b"".join(line(number) for number in range(300))
    for _ in range(2):  # more than a body that comes whole may have
        client.send(
            head(secret, "Transfer-Encoding: chunked"), chunk(many[:70_001]), chunk(many[70_001:]), b"0\r\n\r\n"
        )
        assert sent_events(client) == 300
    client.send(head(secret, f"Content-Length: {len(line(1))}", "Expect: 100-continue"))
    assert client.reader.readline() == b"HTTP/1.1 100 Continue\r\n"
    assert client.reader.readline() == b"\r\n"
    assert sent_events(client.send(line(1))) == 1
    assert held(log) == 601


def test_a_sender_is_held_back_while_nobody_takes_what_it_sent(client, secret, log, monkeypatch):
    go_on, take = threading.Event(), IntakeService.take

    def waiting(*arguments):
        go_on.wait(20)
        return take(*arguments)

    monkeypatch.setattr(IntakeService, "take", waiting)
    block = b"".join(line(number, 10_000) for number in range(800))
    body = block * 3
    client.send(head(secret, f"Content-Length: {len(body)}"))
    client.socket.settimeout(1.0)
    sent = 0
    with suppress(TimeoutError):
        while sent < len(body):
            sent += client.socket.send(body[sent : sent + MB])
    assert sent < len(body) // 2, "the service reads on though nobody takes it"
    go_on.set()
    client.socket.settimeout(20)
    client.send(body[sent:])
    assert sent_events(client) == 2_400


def test_what_a_sender_leaves_unfinished_is_completed_by_sending_it_again(client, port, secret, log):
    body = b"".join(line(number) for number in range(3_000))
    key = "Idempotency-Key: k"
    client.send(head(secret, f"Content-Length: {len(body)}", key), body[: 2 * MB])
    assert wait_until(lambda: held(log) > 0, PATIENCE_S)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.is_closed()
    taken = held(log)
    assert 0 < taken < 3_000
    with connected(port) as again:
        status, _, answer = again.send(head(secret, f"Content-Length: {len(body)}", key), body).answer()
    told = json.loads(answer)
    assert (status, told["events_sent"], told["duplicates"]) == (200, 3_000 - taken, taken)
    assert held(log) == 3_000


def test_a_refused_body_is_dropped_and_the_connection_goes_on(client, secret, log):
    size = 4 * MB
    client.send(head(secret, f"Content-Length: {size}", kind="application/vnd.apache.arrow.stream"), b"x" * size)
    client.refused(400, "invalid_request")
    client.send(head(secret, f"Content-Length: {len(line(1))}"), line(1))
    assert sent_events(client) == 1


@pytest.mark.parametrize("declared", [True, False])
def test_a_streamed_body_has_a_limit_too(settings, clock, secret, declared):
    small = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"stream_bytes": 2 * MB})})
    with serving(small, clock, secret) as port, connected(port) as client:
        if declared:
            client.send(head(secret, f"Content-Length: {3 * MB}"))
        else:
            client.send(head(secret, "Transfer-Encoding: chunked"), chunk(b"\n" * 3 * MB), b"0\r\n\r\n")
        client.refused(413, "payload_too_large")


def test_a_slow_sender_is_given_up(client, secret, log, monkeypatch):
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.0)
    monkeypatch.setattr(connection, "_BODY_BYTES_A_SECOND", 10 * MB)
    client.send(head(secret, f"Content-Length: {3 * MB}"), line(1))
    assert client.is_closed()
    assert held(log) == 0


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_a_large_spine_is_taken_while_it_comes_and_nothing_is_kept_of_one_whose_sender_leaves(settings, port, secret):
    rows = 30_000  # above what a replica reads by itself, and a body beyond serving.max_body_bytes
    instants = pa.array(range(rows), pa.int64())
    body = as_parquet(
        pa.table({"rider": pa.array([7] * rows), "timestamp": instants, "label": [str(n) for n in range(rows)]})
    )
    assert len(body) > settings.serving.max_body_bytes
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": PARQUET.decode()}
    answer = httpx2.post(
        f"http://127.0.0.1:{port}{TRAINING_SETS}?featureset=Rider", content=pieces, headers=headers, timeout=PATIENCE_S
    )
    assert (answer.status_code, answer.json().get("rows")) == (202, rows), answer.text
    (stored_as,) = Path(settings.training_url).rglob("spine.*")
    assert stored_as.read_bytes() == body
    with socket.create_connection(("127.0.0.1", port)) as leaving:
        lines = [f"POST {TRAINING_SETS}?featureset=Rider HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        leaving.sendall("\r\n".join([*lines, "", ""]).encode() + body[:5_000])
        assert wait_until(lambda: len(list(Path(settings.training_url).iterdir())) == 2, PATIENCE_S)
    assert wait_until(lambda: list(Path(settings.training_url).iterdir()) == [stored_as.parent], PATIENCE_S)


@pytest.fixture
def command(port, secret, monkeypatch) -> Callable[..., str]:
    """Runs a command about training sets with the writer's key."""
    for name in ("API_BASE", "API_URL", "QUERY_URL"):
        monkeypatch.setenv(f"THYME_{name}", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("THYME_API_KEY", secret)

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, ["training-sets", *map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.mark.usefixtures("log")
def test_the_command_line_has_a_training_set_made_and_takes_its_rows(settings, clock, command, tmp_path):
    spine = tmp_path / "spine.csv"
    spine.write_text("rider,timestamp,label\n7,2026-01-01,a\n8,2026-01-02,\n")
    made_id = json.loads(command("start", "Rider", "--input", spine, "--json"))["id"]
    assert "requested" in command("list", "Rider")
    assert make(settings, made_id, clock, lambda work: read_here(settings, work))
    assert json.loads(command("follow", made_id, "--json"))["manifest"]["rows"] == 2
    for name in ("rows.parquet", "rows.arrows"):
        command("rows", made_id, "--output", tmp_path / name)
    for table in (pq.read_table(tmp_path / "rows.parquet"), open_spine(str(tmp_path / "rows.arrows"))):
        assert {"label", "rider", "trips"} <= set(table.schema.names)
    assert "rows_sha256" in command("show", made_id)
    again = json.loads(command("start", "--like", made_id, "--json"))["id"]
    assert "cancelling" in command("cancel", again)
    assert command("delete", made_id) == f"training set {made_id} of Rider is deleted\n"
    assert [each["id"] for each in json.loads(command("list", "--json"))] == [again]
