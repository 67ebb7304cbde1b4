"""The keeper's rules, on parts that live in memory; real processes are killed in tests/faults."""

from __future__ import annotations

import threading

import pytest

from cluster.layout import Layout, Ports
from cluster.parts import Part, Scene
from cluster.processes import wait_until
from cluster.state import Board, ClusterState, Workload
from cluster.watcher import Keeper
from featurelib.errors import ClusterError
from featurelib.settings import load_settings
from tests.support.patience import PATIENCE_S


class Lamp(Part):
    """A part that burns until somebody puts it out; the first ``broken`` starts fail."""

    name = "lamp"
    every_s = 0.01
    broken = 0

    def __init__(self, scene):
        super().__init__(scene)
        self.burns = False
        self.starts = 0

    def alive(self):
        return self.burns

    def start(self):
        self.starts += 1
        if self.starts <= self.broken:
            raise ClusterError("no oil")
        self.burns = True
        return "lit"


class Shade(Lamp):
    name = "shade"
    needs = ("lamp",)


class Inside(Lamp):
    name = "inside"
    needs = ("lamp",)
    remote = True


class Room(Lamp):
    name = "room"
    holds = ("lamp",)


@pytest.fixture
def scene(tmp_path):
    layout = Layout(load_settings(data_dir=tmp_path))
    (tmp_path / "secrets").mkdir()
    workload = Workload(serve_config="serve.yaml", supervisor="true", first_start="true")
    made = Scene(
        layout, Board(tmp_path / "state.json", ClusterState(ports=Ports.choose(), workload=workload, settings={}))
    )
    yield made
    made.close()


@pytest.fixture
def keep(scene):
    stopping = threading.Event()
    keepers = []

    def start(part):
        keepers.append(Keeper(part, scene.board, stopping))
        keepers[-1].start()
        return part

    yield start
    stopping.set()
    for keeper in keepers:
        keeper.join(10)


def _until(scene, name, **expected):
    def holds():
        line = scene.board.part(name)
        return all(getattr(line, field) == value for field, value in expected.items())

    assert wait_until(holds, PATIENCE_S), scene.board.part(name)


def test_a_part_that_does_not_run_is_started(scene, keep):
    keep(Lamp(scene))
    _until(scene, "lamp", state="ready", starts=1, detail="lit")


def test_a_part_that_runs_already_is_adopted_and_not_started(scene, keep):
    lamp = Lamp(scene)
    lamp.burns = True
    keep(lamp)
    _until(scene, "lamp", state="ready", starts=0)


def test_a_part_that_dies_is_brought_back(scene, keep):
    lamp = keep(Lamp(scene))
    _until(scene, "lamp", state="ready")
    lamp.burns = False
    _until(scene, "lamp", state="ready", starts=2)


def test_a_failing_start_is_tried_again_and_its_reason_kept(scene, keep):
    lamp = Lamp(scene)
    lamp.broken = 1
    keep(lamp)
    _until(scene, "lamp", error="no oil", failures=1)
    _until(scene, "lamp", state="ready", starts=2)


def test_a_part_waits_for_what_it_needs(scene, keep):
    shade = keep(Shade(scene))
    _until(scene, "shade", state="waiting")
    assert shade.starts == 0
    keep(Lamp(scene))
    _until(scene, "shade", state="ready")


def test_a_part_of_its_own_stays_ready_while_what_it_needed_is_away(scene, keep):
    lamp, _ = keep(Lamp(scene)), keep(Shade(scene))
    _until(scene, "shade", state="ready")
    lamp.broken = 99
    lamp.burns = False
    _until(scene, "lamp", state="failed")
    _until(scene, "shade", state="ready", starts=1)


def test_nothing_is_said_of_a_part_inside_another_while_that_is_away(scene, keep):
    lamp, _ = keep(Lamp(scene)), keep(Inside(scene))
    _until(scene, "inside", state="ready")
    lamp.broken = 99
    lamp.burns = False
    _until(scene, "inside", state="waiting")


def test_what_a_part_held_is_not_called_ready_when_that_is_back_until_it_was_looked_at(scene, keep):
    scene.board.update("lamp", state="ready")  # as its last look found it, and no look since
    room = keep(Room(scene))
    _until(scene, "room", state="ready")
    assert scene.board.part("lamp").state == "ready"
    room.burns = False
    _until(scene, "room", state="ready", starts=2)
    assert scene.board.part("lamp").state == "waiting"
    lamp = Lamp(scene)
    lamp.burns = True
    keep(lamp)
    _until(scene, "lamp", state="ready", starts=0)
