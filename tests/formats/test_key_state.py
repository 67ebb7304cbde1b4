"""State written by every released format still loads, and gives the numbers it gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurelib.engine.codec import decode
from featurelib.engine.panes import HEADER, Header, KeyState
from featurelib.errors import CorruptState
from tests.laws.test_windows import program

FORMATS = sorted((Path(__file__).parents[1] / "fixtures" / "formats").glob("key_state_v*.json"))


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: path.stem)
def test_state_of_an_earlier_format_reads_as_it_did(path: Path) -> None:
    stored = json.loads(path.read_text())
    fields = {name.encode(): bytes.fromhex(data) for name, data in stored["fields"].items()}
    compiled = program("1h", "")
    row = compiled.finish([fields.get(name) for name in compiled.read_fields(stored["at"])], stored["at"])
    assert row == stored["row"]


def test_there_is_a_fixture_of_every_format() -> None:
    assert [json.loads(path.read_text())["format"] for path in FORMATS] == [1, 2, 3, 4, 5]


def test_state_of_a_format_yet_to_come_is_refused_by_name() -> None:
    with pytest.raises(CorruptState, match=r"format b'\\x06'; this version reads up to b'\\x05'"):
        decode(b"\x06\x90")


def test_a_header_from_before_there_were_stamps_has_none_and_gets_one_with_the_next_pane() -> None:
    stored = json.loads(FORMATS[2].read_text())
    header = Header.decode(bytes.fromhex(stored["fields"]["h"]))
    assert header.tree is None
    assert Header.decode(header.encode()) == header
    compiled = program("1h", "")
    state = KeyState(compiled.algebra, compiled.root, header, whole=True)
    time = stored["at"]
    state.add([(time, time, 10_000, "", None, 1, "a", 0)])
    assert Header.decode(state.changes()[HEADER]).tree is None
    state.flush()
    assert Header.decode(state.changes()[HEADER]).tree
