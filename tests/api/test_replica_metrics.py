"""Replicas of a service share a port: whichever a scrape reaches tells of all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_apps.services import open_services
from serve_apps.siblings import Siblings, labelled
from serve_apps.web import Application


@pytest.fixture(scope="module")
def another():
    """The id of a process that lives, and is not this one. The parent will not do: in a container it may be 1."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate(b"\n")


@pytest.fixture
def folder():
    """Short: a unix socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tr") as made:
        yield Path(made)


@pytest.fixture
async def replicas(settings, clock, folder, another):
    """Clients of two replicas of the query server, and the services of each."""
    async with AsyncExitStack() as stack:
        yield [await _replica(stack, settings, clock, Siblings(folder, "query", pid)) for pid in (os.getpid(), another)]


async def _replica(stack, settings, clock, siblings):
    application = Application(lambda: open_services(settings, clock, siblings))
    services = await stack.enter_async_context(application.running())
    transport = httpx2.ASGITransport(application)
    client = httpx2.AsyncClient(transport=transport, base_url="http://thyme")
    return await stack.enter_async_context(client), services


async def _samples(client):
    """Values by name and labels; a family that is told twice, or badly, is no text that Prometheus takes."""
    families = list(text_string_to_metric_families((await client.get("/metrics")).text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    return {(each.name, *sorted(each.labels.items())): each.value for family in families for each in family.samples}


async def test_a_scrape_of_either_replica_tells_what_both_have_counted(replicas, another):
    (one, _), (other, _) = replicas
    for _ in range(3):
        await one.get("/health")
    await other.get("/health")
    for asked in (one, other):
        told = await _samples(asked)
        counted = {
            dict(labels)["replica"]: value
            for (name, *labels), value in told.items()
            if name == "thyme_http_requests_total" and ("route", "/health") in labels
        }
        assert counted == {str(os.getpid()): 3.0, str(another): 1.0}
        assert told["thyme_replicas", ("state", "told")] == 2.0


async def test_what_the_registry_says_is_told_once_and_of_no_replica(replicas):
    (one, _), _ = replicas
    told = await _samples(one)
    assert told[("thyme_freshness_known",)] == 1.0
    assert not any(name.startswith("thyme_freshness") and labels for name, *labels in told)


async def test_each_replica_tells_the_plans_that_it_serves(replicas, another):
    (one, mine), (_, theirs) = replicas
    told = await _samples(one)
    versions = {labels[0][1]: value for (name, *labels), value in told.items() if name == "thyme_plan_version"}
    expected = {str(os.getpid()): mine.current.snapshot.version, str(another): theirs.current.snapshot.version}
    assert versions == expected


async def test_a_replica_that_hangs_is_counted_as_silent(replicas, folder):
    (one, _), _ = replicas
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(folder / "query-1.sock"))
        deaf.listen()
        told = await _samples(one)
    assert (told["thyme_replicas", ("state", "told")], told["thyme_replicas", ("state", "silent")]) == (2.0, 1.0)


@pytest.fixture
def ended():
    """The id of a process that there was."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


async def test_the_socket_of_a_replica_that_died_goes(replicas, folder, ended):
    (one, _), _ = replicas
    left = folder / f"query-{ended}.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(left))
    told = await _samples(one)
    assert told["thyme_replicas", ("state", "silent")] == 0.0
    assert not left.exists()


async def test_another_service_is_not_asked(replicas, settings, clock, folder):
    async with AsyncExitStack() as stack:
        control, _ = await _replica(stack, settings, clock, Siblings(folder, "definition", 1))
        assert (await _samples(control))["thyme_replicas", ("state", "told")] == 1.0


async def test_a_replica_leaves_no_socket(settings, clock, folder):
    async with AsyncExitStack() as stack:
        await _replica(stack, settings, clock, Siblings(folder, "query"))
        (place,) = folder.iterdir()
        assert place.stat().st_mode & 0o777 == 0o600
    assert list(folder.iterdir()) == []


async def test_a_replica_that_cannot_listen_for_the_others_serves_all_the_same(settings, clock, folder):
    taken = folder / "replicas"
    taken.write_text("no folder")
    async with AsyncExitStack() as stack:
        client, _ = await _replica(stack, settings, clock, Siblings(taken, "query"))
        assert (await client.get("/health")).status_code == 200
        assert (await _samples(client))["thyme_replicas", ("state", "told")] == 1.0


async def test_a_replica_that_ends_amid_its_figures_is_silent(replicas, folder):
    (one, _), _ = replicas
    with socket.socket(socket.AF_UNIX) as dying:
        dying.bind(str(folder / "query-1.sock"))
        dying.listen()
        answering = threading.Thread(target=_tell_half, args=(dying,))
        answering.start()
        told = await _samples(one)
        answering.join(10.0)
    assert (told["thyme_replicas", ("state", "told")], told["thyme_replicas", ("state", "silent")]) == (2.0, 1.0)


def _tell_half(door: socket.socket) -> None:
    asker, _ = door.accept()
    with asker:
        asker.sendall(b"# HELP a A.\n# TYPE a gauge\na{b=")


def test_a_family_that_one_replica_has_nothing_of_is_told_once():
    heads = [b"# HELP errors_total E.\n# TYPE errors_total counter\n", b"# HELP b B.\n# TYPE b gauge\n"]
    none, some = heads[0] + heads[1] + b"b 1.0\n", heads[0] + b"errors_total 2.0\n" + heads[1] + b"b 3.0\n"
    told = labelled({"7": none, "8": some}).decode()
    assert told.count("# TYPE errors_total counter") == told.count("# TYPE b gauge") == 1
    assert 'errors_total{replica="8"} 2.0\n' in told
    assert 'b{replica="7"} 1.0\nb{replica="8"} 3.0\n' in told


def test_a_label_may_hold_what_ends_a_name():
    text = (
        b'# HELP a_total A.\n# TYPE a_total counter\na_total{route="/x {y}"} 1.0\n# HELP b B.\n# TYPE b gauge\nb 2.0\n'
    )
    told = labelled({"7": text, "8": text}).decode()
    assert told.count("# TYPE a_total counter") == 1
    assert 'a_total{replica="7",route="/x {y}"} 1.0\na_total{replica="8",route="/x {y}"} 1.0\n' in told
    assert 'b{replica="7"} 2.0\nb{replica="8"} 2.0\n' in told
