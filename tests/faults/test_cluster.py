"""A whole cluster on free ports, with parts of it killed. It runs stand-ins for the services and the jobs.

One cluster serves the module. Each test leaves it ready, so that their order does not matter.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from cluster import local
from cluster.launcher import Launcher
from cluster.layout import Layout
from cluster.local import ClusterStatus
from cluster.processes import free_port, kill, marked, port_holder, wait_until
from cluster.sockets import bind_listener
from cluster.state import PartStatus, Workload, read_state
from featurelib.errors import ClusterError
from featurelib.settings import Settings, load_settings

# Waits end as soon as what they wait for is there: their bounds are for what never comes, however full the machine.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STAND_IN = Workload(
    serve_config=Path(__file__).parents[1] / "support" / "stand_in.yaml",
    supervisor="python -m tests.support.stand_in",
    first_start="python -m cluster.first_start",
)
RECOVERY_S = 180.0
ANSWER_S = 60.0
"""A request that was lost would wait for ever; one on a machine that is full waits for its turn."""
ASKED_MEANWHILE = 10
"""Requests answered while a part of Ray is away. Were its return what they wait for, two of each service would be."""


class Cluster:
    """The running cluster and what tests ask of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layout = Layout(settings)

    def up(self) -> ClusterStatus:
        return local.up(self.settings, workload=STAND_IN)

    def part(self, name: str) -> PartStatus:
        state = read_state(self.layout.state_file)
        assert state is not None
        return state.parts[name]

    def titled(self, part: str, start: str = "") -> list[tuple[str, psutil.Process]]:
        """Processes of a part whose title begins so, with their titles; what ends meanwhile is left out."""
        found = []
        for process in marked(self.layout.id, part):
            with suppress(psutil.NoSuchProcess):
                found.append((process.name(), process))
        return [(title, process) for title, process in found if title.startswith(start)]

    def replicas(self) -> list[psutil.Process]:
        """The replicas that live."""
        return [process for _, process in self.titled("node", "ray::ServeReplica")]

    def processes(self, part: str, name: str) -> list[psutil.Process]:
        return [process for title, process in self.titled(part, name) if title == name]

    def ports(self) -> list[int]:
        state = read_state(self.layout.state_file)
        assert state is not None
        serving = self.settings.serving
        own = [serving.query_port, serving.definition_port, self.settings.cluster.dashboard_port]
        return [*own, *state.ports.model_dump().values()]

    def recovers(self, condition: Callable[[], bool] = lambda: True) -> None:
        """Wait until ``condition`` holds, everything is ready, and both services answer who asks them now.

        What the watcher found at its last look is seconds old; a fault of the next test would hit a cluster that is
        still mending the one before.
        """
        assert wait_until(
            lambda: condition() and local.status(self.settings).ready and self._serves(), RECOVERY_S, every_s=0.2
        ), local.status(self.settings).model_dump_json(indent=1)

    @contextmanager
    def answering(self, timeout_s: float = ANSWER_S) -> Iterator[Probe]:
        """Both services answer every request sent while the block runs."""
        probe = Probe(local.status(self.settings), timeout_s)
        probe.start()
        try:
            yield probe
            # A part may be back before the probe has asked once more.
            after = probe.asked + 4
            assert wait_until(lambda: probe.asked >= after, RECOVERY_S)
        finally:
            probe.finish()
        assert probe.failures == []

    def _serves(self) -> bool:
        found = local.status(self.settings)
        try:
            with Launcher.of(self.settings) as launcher:
                settled = {each.status for each in launcher.applications().values()} == {"RUNNING"}
            return settled and all(_ask(url, 5.0) for url in (found.query_url, found.definition_url))
        except (ClusterError, httpx2.HTTPError):
            return False


def _ask(base: str, timeout_s: float) -> bool:
    """Ask a service on a new connection; raises what httpx raises, also for another status than 2xx."""
    return httpx2.get(f"{base}/health", timeout=timeout_s, trust_env=False).raise_for_status().is_success


class Probe(threading.Thread):
    """Asks both services in turn, ten times a second, each time on a new connection."""

    def __init__(self, status: ClusterStatus, timeout_s: float) -> None:
        super().__init__(daemon=True)
        self._urls = (status.query_url, status.definition_url)
        self._timeout_s = timeout_s
        self._over = threading.Event()
        self.asked = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.1):
            for url in self._urls:
                self._ask(url)

    def finish(self) -> None:
        self._over.set()
        self.join()

    def _ask(self, url: str) -> None:
        try:
            _ask(url, self._timeout_s)
        except httpx2.HTTPError as error:
            self.failures.append(f"{url}: {error!r}")
        self.asked += 1


def _kill_all(*processes: psutil.Process) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it may end with the one before
            process.kill()


def _settings(data_dir: Path) -> Settings:
    ports: list[int] = []
    for _ in range(3):
        ports.append(free_port(ports))
    serving = {"query_port": ports[0], "definition_port": ports[1]}
    return load_settings(data_dir=data_dir, serving=serving, cluster={"dashboard_port": ports[2], "cpus": 4})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        made = Cluster(_settings(tmp_path_factory.mktemp("platform")))
        try:
            made.up()
            yield made
        finally:
            local.down(made.settings)
    assert marked(made.layout.id) == []


def test_up_on_a_running_cluster_starts_nothing(cluster):
    before = {process.pid for process in marked(cluster.layout.id)}
    assert cluster.up().ready
    started = {name: cluster.part(name).process for name in ("online", "head", "node", "listeners")}
    assert {owned.pid for owned in started.values()} <= before


def test_up_with_other_settings_says_which_differ_and_changes_nothing(cluster):
    other = cluster.settings.model_copy(update={"serving": cluster.settings.serving.model_copy(update={"auth": False})})
    with pytest.raises(ClusterError, match=r"other settings \(THYME_SERVING__AUTH\).*thyme down"):
        local.up(other, workload=STAND_IN)
    # A part may be at a look of the watcher's that a busy machine makes late.
    cluster.recovers()


def test_work_runs_on_the_worker_node_and_not_on_the_head(cluster):
    assert cluster.titled("head", "ray::ServeReplica") == []
    with Launcher.of(cluster.settings) as launcher:

        def supervises() -> bool:
            return "supervising" in launcher.logs(cluster.part("supervisor").detail)

        assert wait_until(supervises, RECOVERY_S, every_s=0.2)
    assert cluster.replicas() != []


def test_the_job_interface_refuses_a_caller_without_the_token(cluster):
    url = f"{cluster.layout.dashboard_url}/api/jobs/"
    assert httpx2.get(url, timeout=ANSWER_S, trust_env=False).status_code == 401
    with Launcher(cluster.layout.dashboard_url, "guess") as stranger, pytest.raises(ClusterError, match=r"40[13]"):
        stranger.submit("true", "thyme-stranger")


def test_a_killed_online_server_comes_back_while_the_services_answer(cluster):
    before = cluster.part("online").process
    with cluster.answering():
        os.kill(before.pid, 9)
        cluster.recovers(lambda: cluster.part("online").process != before)


def test_a_killed_control_store_costs_no_answer_and_comes_back(cluster):
    store, head = cluster.part("gcs-store").process, cluster.part("head").process
    with cluster.answering() as probe:
        os.kill(store.pid, 9)
        before = probe.asked
        cluster.recovers(lambda: cluster.part("gcs-store").process != store and cluster.part("head").process != head)
        assert probe.asked - before >= ASKED_MEANWHILE


def test_a_killed_ray_head_costs_no_answer_and_comes_back(cluster):
    head, node, supervisor = (cluster.part(name) for name in ("head", "node", "supervisor"))
    with cluster.answering() as probe:
        _kill_all(*cluster.processes("head", "gcs_server"), *cluster.processes("head", "raylet"))
        before = probe.asked
        cluster.recovers(lambda: cluster.part("head").process != head.process)
        assert probe.asked - before >= ASKED_MEANWHILE
    assert cluster.part("node").process == node.process
    assert cluster.part("supervisor").detail == supervisor.detail


def test_a_killed_worker_node_comes_back_with_services_and_jobs(cluster):
    node, supervisor = cluster.part("node").process, cluster.part("supervisor").detail
    _kill_all(*cluster.processes("node", "raylet"))
    # Replicas end when they notice, and what one of them has accepted ends with it.
    assert wait_until(lambda: not cluster.replicas(), RECOVERY_S)
    # Nobody accepts meanwhile, but the sockets are held: callers wait in the queue and are not refused.
    with cluster.answering(timeout_s=RECOVERY_S):
        cluster.recovers(
            lambda: cluster.part("node").process != node and cluster.part("supervisor").detail != supervisor
        )


def test_a_worker_node_that_ends_because_its_agents_died_comes_back(cluster):
    # Its raylet ends in good order then, and the process that started it stays as if nothing had happened.
    node = cluster.part("node").process
    _kill_all(*(process for _, process in cluster.titled("node", "ray::")))
    cluster.recovers(lambda: cluster.part("node").process != node and cluster.processes("node", "raylet") != [])


def test_jobs_come_back_when_the_worker_node_dies_after_a_lost_head(cluster):
    # Ray goes on calling the job running then: the head that knew of it is gone, and so is who would report its end.
    head = cluster.part("head").process
    _kill_all(*cluster.processes("head", "gcs_server"), *cluster.processes("head", "raylet"))
    cluster.recovers(lambda: cluster.part("head").process != head)
    supervisor = cluster.part("supervisor").detail
    _kill_all(*cluster.processes("node", "raylet"))
    cluster.recovers(lambda: cluster.part("supervisor").detail != supervisor)


def test_a_killed_watcher_is_replaced_by_up_which_adopts_everything(cluster):
    kept = {name: cluster.part(name).process for name in ("online", "gcs-store", "listeners", "head", "node")}
    with cluster.answering():
        kill(lambda: marked(cluster.layout.id, "watcher"))
        assert not local.status(cluster.settings).running
        assert cluster.up().ready
    assert {name: cluster.part(name).process for name in kept} == kept


def test_a_killed_holder_of_the_sockets_comes_back_unnoticed(cluster):
    before = cluster.part("listeners").process
    with cluster.answering():
        os.kill(before.pid, 9)
        cluster.recovers(lambda: cluster.part("listeners").process != before)


def test_a_stopped_supervisor_job_is_submitted_again(cluster):
    with Launcher.of(cluster.settings) as launcher:
        asked: list[str] = []

        def stops() -> bool:
            asked.append(cluster.part("supervisor").detail)
            return launcher.stop(asked[-1])

        # After a fault of an earlier test the job on record may have ended: the watcher submits the next one then.
        assert wait_until(stops, RECOVERY_S, every_s=0.2)
        cluster.recovers(lambda: cluster.part("supervisor").detail != asked[-1])
        assert launcher.job(asked[-1]).status == "STOPPED"


def test_down_leaves_no_process_and_no_port_and_up_starts_again(cluster):
    stopped = local.down(cluster.settings)
    assert stopped.processes > 10
    assert marked(cluster.layout.id) == []
    assert [port_holder("127.0.0.1", port) for port in cluster.ports()] == [None] * 8
    assert not cluster.layout.short.exists()
    assert not local.status(cluster.settings).running
    assert local.down(cluster.settings).processes == 0
    assert cluster.up().ready


def test_a_taken_port_is_refused_before_anything_starts(tmp_path):
    settings = _settings(tmp_path)
    with (
        bind_listener("127.0.0.1", settings.serving.query_port),
        bind_listener("127.0.0.1", settings.cluster.dashboard_port),
        pytest.raises(ClusterError) as caught,
    ):
        local.up(settings, workload=STAND_IN)
    message = str(caught.value)
    for port in (settings.serving.query_port, settings.cluster.dashboard_port):
        assert f"port {port} is already taken by process {os.getpid()}" in message
    assert "THYME_SERVING__QUERY_PORT" in message
    assert marked(Layout(settings).id) == []
    local.down(settings)


def test_a_part_that_cannot_start_is_reported_with_its_reason(tmp_path):
    settings = _settings(tmp_path)
    hopeless = STAND_IN.model_copy(update={"first_start": "python -m cluster.no_such_module"})
    try:
        with pytest.raises(ClusterError, match=r"(?s)registry failed 3 times.*no_such_module"):
            local.up(settings, workload=hopeless)
    finally:
        local.down(settings)
    assert marked(Layout(settings).id) == []
