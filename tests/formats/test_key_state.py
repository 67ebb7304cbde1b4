"""State written by every released format still loads, and gives the numbers it gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurelib.engine.codec import decode
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
    assert [json.loads(path.read_text())["format"] for path in FORMATS] == [1, 2, 3]


def test_state_of_a_format_yet_to_come_is_refused_by_name() -> None:
    with pytest.raises(CorruptState, match=r"format b'\\x04'; this version reads b'\\x03'"):
        decode(b"\x04\x90")
