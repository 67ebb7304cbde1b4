"""The live feed: real replicas on real sockets, over one registry."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx2
import pytest

from cluster.processes import wait_until
from cluster.sockets import bind_listener
from featurelib.settings import Settings
from featurelib.stores.feed import Feed, FeedEntry, Place
from featurelib.stores.registry import NewEvent, Registry
from serve_apps import live_feed
from serve_apps.listener import Listener
from serve_apps.live_feed import Filters, LiveFeed
from serve_apps.routes import feed as feed_routes
from serve_apps.services import open_services
from serve_apps.web import Application
from tests.support.clocks import MovedClock
from tests.support.event_streams import PATH, Entry, following
from tests.support.patience import PATIENCE_S


class Scene:
    """A registry, and replicas over it."""

    def __init__(self, settings: Settings, clock: MovedClock) -> None:
        self._settings = settings
        self._clock = clock
        self.registry = Registry(settings.registry_url, clock)
        self.key, self.secret = self.registry.create_key("reader", "reader")
        self.replicas: list[Listener] = []

    def replica(self, **serving: int) -> Listener:
        changed = self._settings.serving.model_copy(update={"event_poll_ms": 10, **serving})
        settings = self._settings.model_copy(update={"serving": changed})
        self.application = Application(lambda: open_services(settings, self._clock))
        made = Listener(self.application, bind_listener("127.0.0.1", 0))
        made.start()
        self.replicas.append(made)
        return made

    def followers(self) -> int:
        """Of the replica that was started last."""
        followers: int = self.application.api.state.services.feed.followers
        return followers

    def happens(self, *messages: str, subject: str = "it", severity: str = "info") -> None:
        for message in messages:
            event = NewEvent(event_type="noted", source="test", subject=subject, message=message)
            self.registry.record_event(event.model_copy(update={"severity": severity}))

    def close(self) -> None:
        for replica in self.replicas:
            replica.stop()
        self.registry.close()


@pytest.fixture
def scene(settings: Settings, clock: MovedClock) -> Iterator[Scene]:
    made = Scene(settings, clock)
    yield made
    made.close()


def messages(entries: list[Entry]) -> list[str]:
    return [entry.event["message"] for entry in entries]


def test_what_happens_is_sent_as_it_happens_and_to_each_what_it_asked_for(scene: Scene) -> None:
    port = scene.replica().port
    scene.happens("before")
    with (
        following(port, scene.secret) as everything,
        following(port, scene.secret, severity="warning", subject="it") as filtered,
    ):
        assert everything.answer.headers["content-type"].startswith("text/event-stream")
        scene.happens("one")
        scene.happens("two", severity="warn", subject="other")
        scene.happens("three", severity="warn")
        seen = everything.take(3)
        assert messages(seen) == ["one", "two", "three"]
        assert messages(filtered.take(1)) == ["three"]
    listed = httpx2.get(
        f"http://127.0.0.1:{port}/api/v1/events",
        headers={"Authorization": f"Bearer {scene.secret}"},
        timeout=PATIENCE_S,
    )
    assert [entry.event for entry in reversed(seen)] == listed.json()[:3]
    assert [entry.id for entry in seen] == [entry.event["id"] for entry in seen]


def test_a_follower_moves_from_replica_to_replica_and_has_every_entry_once(scene: Scene) -> None:
    """Each replica stops in the middle of a stream of events; the next one goes on where it was."""
    enough, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        while not enough.is_set():
            scene.happens(f"{written}")
            written += 1

    scene.happens("first")
    last = Feed(scene.registry.database).after(0)[-1].event.id
    writer = threading.Thread(target=write)
    writer.start()
    seen: list[Entry] = []
    for _ in range(3):
        replica = scene.replica()
        with following(replica.port, scene.secret, last=last) as stream:
            seen += stream.take(30)
            stopping = threading.Thread(target=replica.stop)
            stopping.start()
            seen += stream.entries()  # to the end, which comes by itself
            stopping.join()
        last = seen[-1].id
    enough.set()
    writer.join()
    with following(scene.replica().port, scene.secret, last=last) as stream:
        seen += stream.take(written - len(seen))
    assert messages(seen) == [f"{number}" for number in range(written)]


def test_a_follower_that_was_away_for_long_gets_all_it_missed_and_then_what_is_new(scene: Scene) -> None:
    scene.happens(*(f"{number}" for number in range(450)))
    port = scene.replica().port
    entries = Feed(scene.registry.database).after(0)
    last = next(entry.event.id for entry in entries if entry.event.message == "9")
    with following(port, scene.secret), following(port, scene.secret, last=last) as stream:
        assert messages(stream.take(440)) == [f"{number}" for number in range(10, 450)]
        scene.happens("new")
        assert messages(stream.take(1)) == ["new"]
    with following(port, scene.secret, after=entries[-1].event.id) as stream:
        assert messages(stream.take(1)) == ["new"]


def test_who_is_cut_off_before_anything_came_goes_on_where_the_stream_began(scene: Scene) -> None:
    port = scene.replica().port
    with following(port, scene.secret) as stream:
        began = stream.last
    scene.happens("meanwhile")
    with following(port, scene.secret, last=began) as stream:
        assert messages(stream.take(1)) == ["meanwhile"]


def test_what_cannot_be_followed_is_refused(scene: Scene) -> None:
    replica = scene.replica(event_streams=1)
    url, headers = f"http://127.0.0.1:{replica.port}{PATH}", {"Authorization": f"Bearer {scene.secret}"}
    for last, status in (("17", 400), ("x" * 36, 400), ("5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11", 404)):
        answer = httpx2.get(url, headers={**headers, "Last-Event-ID": last}, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["correlation_id"]) == (status, answer.headers["x-correlation-id"])
    assert httpx2.get(url, headers=headers, params={"severity": "loud"}, timeout=PATIENCE_S).status_code == 400
    assert httpx2.get(url, timeout=PATIENCE_S).status_code == 401
    head = httpx2.head(url, headers=headers, timeout=PATIENCE_S)
    assert (head.status_code, head.content) == (200, b"")
    with following(replica.port, scene.secret):
        answer = httpx2.get(url, headers=headers, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()["error"]) == (503, "service_unavailable")
        assert answer.headers["retry-after"] == "1"


def test_a_key_that_is_revoked_ends_its_streams(scene: Scene) -> None:
    with following(scene.replica().port, scene.secret) as stream:
        scene.registry.revoke_key(scene.key.fingerprint)
        assert [entry.event["event_type"] for entry in stream.entries()] in (["api_key_revoked"], [])


def test_a_client_that_takes_nothing_is_cut_off_and_holds_nobody_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_routes, "_TAKEN_WITHIN_S", 0.5)
    # Nothing leaves the window: who falls behind it is let go with the end of a whole answer.
    monkeypatch.setattr(live_feed, "_KEPT_BYTES", 100_000_000)
    port = scene.replica().port
    scene.happens("first")
    # More than the buffers of both ends take.
    large = [f"{number} {'x' * 100_000}" for number in range(120)]
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        stuck.settimeout(PATIENCE_S)
        stuck.connect(("127.0.0.1", port))
        head = f"GET {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {scene.secret}\r\n\r\n"
        stuck.sendall(head.encode())
        begun = b""
        while b"retry" not in begun:
            begun += stuck.recv(4_096)
        writer = threading.Thread(target=scene.happens, args=large)
        writer.start()
        numbers = [message.split()[0] for message in messages(followed(scene, port, len(large)))]
        assert numbers == [f"{number}" for number in range(len(large))]
        writer.join()
        assert wait_until(lambda: scene.followers() == 0, PATIENCE_S, every_s=0.05)
        # Without the end that a whole answer has, and not all of it.
        taken = read_to_the_end(stuck)
        assert not taken.endswith(b"0\r\n\r\n")
        assert len(taken) < 100_000 * len(large)


def followed(scene: Scene, port: int, count: int) -> list[Entry]:
    """So many entries after the first one, taken by a client that comes back when its stream ends."""
    seen: list[Entry] = []
    last = next(entry.event.id for entry in Feed(scene.registry.database).after(0) if entry.event.message == "first")
    while len(seen) < count:
        # A machine that is slow enough leaves this client no time either: it is cut off, and comes back as well.
        with suppress(httpx2.RemoteProtocolError), following(port, scene.secret, last=last) as stream:
            for entry in stream.entries():
                seen.append(entry)
                last = entry.id
                if len(seen) == count:
                    break
    return seen


def read_to_the_end(connection: socket.socket) -> bytes:
    taken = b""
    while some := connection.recv(1_048_576):
        taken += some
    return taken


def test_hundreds_of_followers_cost_one_poll_and_no_memory_of_their_own(scene: Scene) -> None:
    source = Counting(Feed(scene.registry.database))
    followers, entries = 250, 40

    async def follow(feed: LiveFeed, begun: asyncio.Semaphore) -> str:
        async with feed.following(None) as place:
            taken = b""
            async for chunk in feed.chunks(place, Filters(), lambda: True):
                begun.release()
                taken += chunk
                if taken.count(b"data: ") == entries:
                    return taken.decode()
        raise AssertionError

    async def run() -> list[str]:
        feed = LiveFeed(source, most=followers, poll_s=0.01)
        stopping, begun = asyncio.Event(), asyncio.Semaphore(0)
        polling = asyncio.create_task(feed.run(stopping))
        tasks = [asyncio.create_task(follow(feed, begun)) for _ in range(followers)]
        for _ in range(followers):
            await begun.acquire()
        source.heads, source.asked = 0, []
        await asyncio.to_thread(scene.happens, *(f"{number}" for number in range(entries)))
        taken = await asyncio.gather(*tasks)
        assert feed.followers == 0
        stopping.set()
        feed.close()
        await polling
        return taken

    taken = asyncio.run(run())
    assert len(set(taken)) == 1
    assert [line for line in taken[0].splitlines() if "data" in line][-1].count('"39"') == 1
    # Nobody asked the store but the poller: each place once until something came after it.
    assert source.heads == 0
    assert source.asked == sorted(source.asked)
    assert len(set(source.asked)) <= entries + 1


async def test_a_follower_slower_than_the_feed_is_ended_and_the_window_stays_bounded(scene: Scene) -> None:
    feed = LiveFeed(Feed(scene.registry.database), most=2, poll_s=0.001)
    stopping = asyncio.Event()
    polling = asyncio.create_task(feed.run(stopping))
    async with feed.following(None) as slow_place, feed.following(None) as quick_place:
        slow = feed.chunks(slow_place, Filters(), lambda: True)
        quick = feed.chunks(quick_place, Filters(), lambda: True)
        greeting = f"id: {slow_place.event_id}\nretry: 1000\n\n".encode()
        assert [await anext(slow), await anext(quick)] == [greeting] * 2
        await asyncio.to_thread(scene.happens, "first")
        assert b"first" in await anext(slow)
        assert b"first" in await anext(quick)
        # The window takes 80 of these: who takes every 40 never falls behind, however slow the machine is.
        for _ in range(3):
            await asyncio.to_thread(scene.happens, *["y" * 50_000] * 40)
            taken = 0
            while taken < 40:
                taken += (await anext(quick)).count(b"data: ")
        assert feed.kept_bytes <= 4 * 1024 * 1024
        assert [chunk async for chunk in slow] == []
        await quick.aclose()
    stopping.set()
    feed.close()
    await polling


class Counting:
    """A feed that notes what it is asked."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.heads = 0
        self.asked: list[int] = []

    def head(self) -> Place:
        self.heads += 1
        return self._feed.head()

    def place_of(self, event_id: str) -> int | None:
        return self._feed.place_of(event_id)

    def after(self, sequence: int, limit: int) -> list[FeedEntry]:
        self.asked.append(sequence)
        return self._feed.after(sequence, limit)
