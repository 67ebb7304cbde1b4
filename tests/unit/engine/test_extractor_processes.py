"""Extractors in child processes: what they cannot see, and what their end means."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal

import pytest

from featurelib.definitions import PyCode
from featurelib.engine.extractor import Scope, Task, Typed
from featurelib.engine.processes import Processes
from featurelib.engine.user_code import Limits
from featurelib.errors import UserCodeError

AT = 1_772_366_400_000_000
LIMITS = Limits(soft_s=0.1, hard_s=1.0)

Call = Callable[..., object]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    processes = Processes(LIMITS, count=1)
    yield processes
    processes.close()


@pytest.fixture
def call(processes: Processes) -> Call:
    """Runs a function of one text input for its one output."""

    def call(source: str, given: str = "", output: str = "str") -> object:
        (value,) = processes.load(task(source, output)).one([given], Scope({}, AT, None))
        return value

    return call


def task(source: str, output: str = "str") -> Task:
    made = PyCode(entry_point="f", source=source, file="features.py", line=41)
    return Task("F.f", f"{output} {source}", made, (Typed("x", "str"),), (Typed("y", output),), (), vectorized=False)


ECHO = "def f(cls, ts, x): return x"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os; os._exit(3)", r"ended its process \(exit status 3\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"ended its process \(signal SIGKILL\)"),
        ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", "took longer than 1000 ms; its process was killed"),
        ("while True: pass", "took longer than 100 ms and was interrupted"),
        ("raise SystemExit", "SystemExit"),
        ("return f(cls, ts, x)", "RecursionError"),
        ("return '\\ud800'", "text that no UTF-8 spells"),
        ("raise ValueError('\\ud800')", r"ValueError: \\ud800"),
    ],
)
def test_whatever_an_extractor_does_to_its_process_the_next_call_is_answered(body, said, call):
    with pytest.raises(UserCodeError, match=said) as caught:
        call(f"def f(cls, ts, x):\n    {body}")
    assert caught.value.location in {"features.py:41", "features.py:42"}
    assert call(ECHO, "still here") == "still here"


def test_a_child_that_spoils_its_channel_is_replaced(call):
    source = """
import os
def f(cls, ts, x):
    for name in range(3, 64):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket"):
                os.write(name, b"\\0\\0\\0\\x04spam")
        except OSError:
            pass
    return x
"""
    with pytest.raises(UserCodeError, match="spoiled the channel"):
        call(source)
    assert call(ECHO, "still here") == "still here"


def test_a_child_knows_nothing_of_the_parents_environment(monkeypatch):
    monkeypatch.setenv("THYME_ONLINE__REDIS_URL", "redis://:secret@host")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    processes = Processes(LIMITS, count=1)
    source = "import os\ndef f(cls, ts, x): return {'y': sorted(os.environ)}"
    (names,) = processes.load(task(source, "list[str]")).one([""], Scope({}, AT, None))
    processes.close()
    # The last two are set in the child, by Python and by Polars.
    assert set(names) <= {"PATH", "LANG", "TZ", "POLARS_MAX_THREADS", "LC_CTYPE", "_RJEM_MALLOC_CONF"}


def test_a_child_has_none_of_the_parents_files_open(tmp_path):
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        processes = Processes(LIMITS, count=1)
        source = (
            "import os\ndef f(cls, ts, x):\n"
            "    places = [f'/proc/self/fd/{n}' for n in range(1_000)]\n"
            "    found = [os.readlink(place) for place in places if os.path.lexists(place)]\n"
            "    return {'y': [each for each in found if 'secret' in each] + found[:1]}"
        )
        (found,) = processes.load(task(source, "list[str]")).one([""], Scope({}, AT, None))
        processes.close()
    assert found == ["/dev/null"]


def test_decimals_come_back_as_decimals(call):
    assert call("from decimal import Decimal\ndef f(cls, ts, x): return Decimal(x)", "1.50", "decimal(2)") == Decimal(
        "1.50"
    )


def test_the_limit_is_of_a_call_and_not_of_a_batch():
    # Sixteen rows of 0.2 s: together longer than the limit, each far below it, also on a busy machine.
    source = (
        "import time\ndef f(cls, ts, x):\n"
        "    until = time.monotonic() + 0.2\n    while time.monotonic() < until: pass\n    return x"
    )
    with closing(Processes(Limits(soft_s=3.0, hard_s=3.0), count=1)) as processes:
        part = processes.load(task(source)).many([["a"] * 16], [AT] * 16, {})
    assert part.columns == [["a"] * 16]


def test_no_call_is_answered_after_the_close():
    processes = Processes(LIMITS, count=1)
    body = processes.load(task(ECHO))
    processes.close()
    with pytest.raises(UserCodeError, match="no process could be started"):
        body.one(["x"], Scope({}, AT, None))
