from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import uuid
import weakref
from collections.abc import Iterator

import psutil
import pytest

from cluster import processes
from cluster.processes import (
    CLUSTER_MARK,
    PART_MARK,
    Owned,
    are_let_go,
    collect_between,
    collect_seldom,
    free_port,
    is_live,
    kill,
    marked,
    part_of,
    port_holder,
    spawn,
    stop,
    wait_until,
)
from cluster.sockets import bind_listener
from tests.support.patience import PATIENCE_S

FOREVER = [sys.executable, "-c", "import time; time.sleep(600)"]
WITH_CHILD = [sys.executable, "-c", f"import subprocess, sys; subprocess.run({FOREVER!r})"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)",
]


@pytest.fixture
def cluster_id():
    identity = uuid.uuid4().hex[:10]
    yield identity
    kill(lambda: marked(identity))


def _start(cluster_id, tmp_path, command=FOREVER, part="online"):
    return spawn(command, {**os.environ, CLUSTER_MARK: cluster_id, PART_MARK: part}, tmp_path / "log", cwd=tmp_path)


def test_children_of_a_part_are_found_by_the_inherited_mark(cluster_id, tmp_path):
    with _start(cluster_id, tmp_path, WITH_CHILD, part="node") as parent:
        assert wait_until(lambda: len(marked(cluster_id, "node")) == 2, PATIENCE_S)
        assert {part_of(process) for process in marked(cluster_id)} == {"node"}
        assert marked(cluster_id, "head") == []
        kill(lambda: marked(cluster_id))
        parent.wait(10)


def test_stopping_one_cluster_leaves_another_running(cluster_id, tmp_path):
    other = uuid.uuid4().hex[:10]
    with _start(cluster_id, tmp_path) as mine, _start(other, tmp_path) as theirs:
        assert stop(lambda: marked(cluster_id), 5.0) == []
        assert mine.wait(10) != 0
        assert [process.pid for process in marked(other)] == [theirs.pid]
        kill(lambda: marked(other))


def test_a_process_deaf_to_sigterm_is_killed_after_the_grace_time(cluster_id, tmp_path):
    with _start(cluster_id, tmp_path, DEAF) as deaf:
        assert wait_until(lambda: (tmp_path / "log").read_text() == "1\n", PATIENCE_S)
        assert stop(lambda: marked(cluster_id), 0.2) == []
        assert deaf.wait(10) == -9


def test_a_recycled_process_id_is_not_taken_for_ours():
    mine = Owned.of(os.getpid())
    assert mine.process() == psutil.Process()
    assert mine.model_copy(update={"created": mine.created - 60}).process() is None


def test_a_zombie_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(child.pid)
    assert wait_until(lambda: not is_live(process), PATIENCE_S)
    assert psutil.pid_exists(child.pid)
    child.wait()


def test_the_holder_of_a_port_is_named_with_pid_and_command():
    with bind_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        holder = port_holder("127.0.0.1", port)
    assert holder is not None
    assert holder.pid == os.getpid()
    assert f"port {port} is already taken by process {os.getpid()}" in str(holder)
    assert "python" in holder.command
    assert port_holder("127.0.0.1", port) is None


def test_a_free_port_can_be_bound_and_avoids_those_named():
    port = free_port()
    assert free_port([port]) != port
    bind_listener("127.0.0.1", port).close()


def test_a_port_of_a_process_that_is_gone_is_not_let_go_until_its_socket_is_closed():
    listening = bind_listener("127.0.0.1", 0)
    port = listening.getsockname()[1]
    listening.listen()
    assert are_let_go([port])  # it is ours
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # On its way between two sockets it belongs to no process, as it does while a killed one ends.
        socket.send_fds(ours, [b"x"], [listening.fileno()])
        listening.close()
        assert not are_let_go([port])
        assert are_let_go([port + 1])
        _, (descriptor,), _, _ = socket.recv_fds(theirs, 1, 1)
        os.close(descriptor)
    assert are_let_go([port])


def test_a_port_of_a_process_that_has_no_memory_any_more_is_not_let_go():
    # One without an environment looks like that, and can be kept there.
    listen = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); "
    command = [sys.executable, "-c", listen + "sys.stdin.read()"]
    with subprocess.Popen(command, env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as ending:
        port = int(ending.stdout.readline())
        assert not are_let_go([port])
        ending.stdin.close()
        ending.wait()
    assert are_let_go([port])


def test_a_process_that_begins_a_session_is_alone_in_it_and_gives_way() -> None:
    program = (
        "import os; from cluster.processes import begin_session; before = os.getsid(0); begin_session(7);"
        " print(before != os.getpid(), os.getsid(0) == os.getpid(), os.nice(0), os.path.exists('/proc/self/autogroup')"
        " and open('/proc/self/autogroup').read().split()[-1])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    *begun, group = done.stdout.split()
    assert begun == ["True", "True", str(os.nice(0) + 7)]
    assert group in {"False", "7"}


def test_a_process_that_leads_a_group_as_every_worker_of_ray_does_begins_a_session_too() -> None:
    program = (
        "import os; from cluster.processes import begin_session; before = os.getsid(0), os.getpgid(0) == os.getpid();"
        " begin_session(); print(before[0] != os.getpid(), before[1], os.getsid(0) == os.getpid())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert done.stdout.split() == ["True", "True", "True"]


def test_a_process_whose_group_has_others_in_it_stays_where_it_is_and_makes_nobody_else_nice() -> None:
    program = (
        "import os, subprocess; from cluster.processes import begin_session;"
        " other = subprocess.Popen(['cat'], stdin=subprocess.PIPE); before = os.getsid(0); begin_session(7);"
        " group = os.path.exists('/proc/self/autogroup') and open('/proc/self/autogroup').read().split()[-1];"
        " print('at', os.getsid(0) == before, os.getpgid(0) == os.getpid(), os.nice(0), group); other.communicate()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert "session_shared" in done.stdout
    *told, group = done.stdout.rpartition("at ")[2].split()
    assert told == ["True", "True", str(os.nice(0) + 7)]
    assert group != "7"


def test_a_process_that_leads_a_session_stays_in_it() -> None:
    program = (
        "import os; from cluster.processes import begin_session; begin_session(); print(os.getsid(0) == os.getpid())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert done.stdout == "True\n"


class Node:
    """Something that can hold itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def seldom() -> Iterator[None]:
    """Garbage is looked for seldom."""
    before = gc.get_threshold()
    collect_seldom(between=True)
    yield
    gc.set_threshold(*before)


@pytest.fixture
def passes() -> Iterator[list[int]]:
    """The generation of each pass of the garbage collector."""
    made: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            made.append(info["generation"])

    gc.callbacks.append(note)
    yield made
    gc.callbacks.remove(note)


@pytest.mark.usefixtures("seldom")
def test_cycles_among_the_young_are_let_go_between_two_steps_and_not_before(passes: list[int]):
    young = weakref.ref(Node())
    kept = [[] for _ in range(10_000)]
    assert young() is not None
    assert not passes
    collect_between()
    assert young() is None
    assert passes == [0]
    assert gc.get_count()[0] < len(kept)


@pytest.mark.usefixtures("seldom")
def test_older_objects_are_looked_through_after_many_steps(passes: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_PASSES_BETWEEN", 20)
    node = Node()
    older = weakref.ref(node)
    collect_between()
    del node
    for _ in range(30):
        collect_between()
    assert older() is None
    assert passes.count(1) == 1


@pytest.mark.usefixtures("seldom")
def test_a_step_that_makes_much_has_the_young_looked_through_alone(passes: list[int]):
    for _ in range(100):
        collect_between()
    passes.clear()
    kept = [[] for _ in range(250_000)]
    assert {*passes} == {0}
    assert kept
