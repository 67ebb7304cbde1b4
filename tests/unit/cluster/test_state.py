from __future__ import annotations

import threading

import pytest

from cluster.layout import Ports
from cluster.state import Board, ClusterState, Workload, read_state

WORKLOAD = Workload(serve_config="serve.yaml", supervisor="true", first_start="true")


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path / "state.json", ClusterState(ports=Ports.choose(), workload=WORKLOAD, settings={}))


def test_what_a_board_is_told_can_be_read_by_another_process(board, tmp_path):
    board.update("head", state="ready", generation=2)
    state = read_state(tmp_path / "state.json")
    assert state is not None
    assert state.ports == board.ports
    assert state.parts["head"].state == "ready"
    assert state.parts["head"].generation == 2


def test_the_state_file_is_readable_by_its_owner_only(board, tmp_path):
    board.update("head", state="starting")
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0


def test_a_file_of_another_version_is_no_state(tmp_path):
    (tmp_path / "state.json").write_text('{"version": 0}')
    assert read_state(tmp_path / "state.json") is None
    assert read_state(tmp_path / "absent.json") is None


def test_the_time_of_a_state_is_that_of_its_last_change(board):
    first = board.update("node", state="starting").since
    assert board.update("node", detail="pid 1").since == first
    assert board.update("node", state="ready").since > first


def test_whoever_waits_for_a_part_goes_on_when_it_is_ready(board):
    board.update("gcs-store", state="ready")
    waited: list[bool] = []
    waiting = threading.Thread(target=lambda: waited.append(board.wait_ready(["gcs-store", "head"], 10)))
    waiting.start()
    board.update("head", state="ready")
    waiting.join(10)
    assert waited == [True]
    assert board.missing(["head", "node"]) == ["node"]


def test_waiting_ends_at_the_deadline(board):
    assert not board.wait_ready(["head"], 0.01)


def test_a_new_watcher_takes_nothing_for_ready_but_remembers_the_processes(board, tmp_path):
    board.update("head", state="ready", generation=3)
    state = read_state(tmp_path / "state.json")
    assert state is not None
    assert state.unsure().parts["head"].state == "waiting"
    assert state.unsure().parts["head"].generation == 3
