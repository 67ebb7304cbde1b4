"""The boundary to user code: whatever a function does is contained and said at the user's line."""

from __future__ import annotations

import os
import pickle
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from featurelib.definitions import PyCode
from featurelib.engine.user_code import Guard, Limits, Passing, UserFunction, load
from featurelib.errors import UserCodeError

QUICK = Limits(soft_s=0.02, hard_s=60.0)
FOREVER = "def f():\n    while True:\n        pass"


def code(source: str, line: int | None = 41) -> PyCode:
    return PyCode(entry_point="f", source=textwrap.dedent(source).strip(), file="features.py", line=line)


@pytest.fixture
def guarded() -> Iterator[Callable[..., UserFunction]]:
    """Loads functions under a soft limit of 20 ms."""
    guard = Guard(QUICK)
    yield lambda source, **names: load(code(source), "F.f", names, guard)
    guard.close()


def refusal(function: UserFunction, *arguments: object) -> UserCodeError:
    with pytest.raises(UserCodeError) as caught:
        function.call(*arguments)
    return caught.value


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise type('Mine', (BaseException,), {})('all mine')", "Mine: all mine"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("return f()", "RecursionError"),
        ("assert False, 'never'", "AssertionError: never"),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})", "its message cannot be read"),
        ("raise ValueError('x' * 10_000_000)", "ValueError: xxx"),
    ],
)
def test_whatever_is_raised_becomes_the_users_error_at_their_line(body, said):
    error = refusal(load(code(f"# nothing here\ndef f():\n    {body}"), "F.f"))
    assert said in error.message
    assert len(error.message) <= 2_000
    assert (error.function, error.location) == ("F.f", "features.py:42")
    assert pickle.loads(pickle.dumps(error)).args == error.args


@pytest.fixture
def listening_to_ctrl_c():
    """Started in the background, a process ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening_to_ctrl_c")
def test_a_persons_ctrl_c_is_not_taken_for_an_error_of_the_function():
    function = load(code("def f(interrupt):\n    interrupt()"), "F.f")
    with pytest.raises(KeyboardInterrupt):
        function.call(partial(signal.raise_signal, signal.SIGINT))


def test_a_signal_of_the_platform_crosses_a_broad_except_and_its_own_boundary():
    function = load(code("def f(stop):\n    try:\n        stop()\n    except Exception:\n        return 1"), "F.f")

    def stop() -> None:
        raise Passing

    with pytest.raises(Passing):
        function.call(stop)


@pytest.mark.parametrize(
    ("source", "said", "line"),
    [
        ("x = 1\ndef f(:", "SyntaxError", 2),
        ("import nothing_of_this_name\ndef f(): pass", "ModuleNotFoundError", 41),
        ("g = 1", "defines no function 'f'", 41),
        ("f = 1", "defines no function 'f'", 41),
        ("def f(): return '\0'", "null bytes", 41),
        ("def f(): return '\ud800'", "does not compile", 41),
        ("def f(): return " + "(" * 500 + ")" * 500, "nested", 1),
        ("raise SystemExit\ndef f(): pass", "SystemExit", 41),
    ],
)
def test_text_that_does_not_load_is_the_users_error(source, said, line):
    with pytest.raises(UserCodeError, match=said) as caught:
        load(code(source), "F.f")
    assert caught.value.location in {f"features.py:{line}", "features.py:1"}


@pytest.mark.parametrize(("source", "said"), [("async def f(): pass", "async"), ("def f():\n    yield 1", "generator")])
def test_only_a_plain_function_has_a_signature(source, said):
    with pytest.raises(UserCodeError, match=said):
        load(code(source), "F.f").signature()


def test_a_function_without_a_file_is_named_by_its_label():
    made = PyCode(entry_point="f", source="def f():\n    return 1 / 0")
    assert refusal(load(made, "F.f")).location == "<F.f>:2"


def test_given_names_are_there_for_the_module_and_the_function():
    function = load(code("doubled = 2 * given\ndef f(): return doubled + given"), "F.f", {"given": 4})
    assert function.call() == 12


def test_polars_can_be_imported_by_user_code():
    source = "import polars as pl\ndef f(values): return pl.Series(values).rolling_mean(2).to_list()"
    assert load(code(source), "F.f").call([1.0, 2.0, 4.0]) == [None, 1.5, 3.0]


def test_an_endless_loop_is_interrupted_at_its_line(guarded):
    error = refusal(guarded("def f():\n    n = 0\n    while True:\n        n += 1"))
    assert "took longer than 20 ms and was interrupted" in error.message
    assert error.location in {"features.py:43", "features.py:44"}


def test_an_endless_loop_at_the_top_of_the_module_is_interrupted_when_it_is_loaded(guarded):
    # Ten times as long as a call may take: packages are imported there.
    with pytest.raises(UserCodeError, match="took longer than 200 ms and was interrupted"):
        guarded("while True: pass\ndef f(): return 1")


@pytest.mark.parametrize("caught", ["Exception", "BaseException"])
def test_a_function_that_catches_everything_is_interrupted_too(guarded, caught):
    source = f"""
        def f():
            for _ in range(2):
                try:
                    while True:
                        pass
                except {caught}:
                    continue
            return "done"
    """
    function = guarded(source)
    if caught == "Exception":
        assert "was interrupted" in refusal(function).message
    else:
        # It was interrupted twice, and nothing is left of that for whoever called it.
        assert function.call() == "done"


def test_an_interrupted_function_may_be_called_again(guarded):
    function = guarded("def f(n):\n    while n:\n        pass\n    return 'done'")
    assert "was interrupted" in refusal(function, 1).message
    assert function.call(0) == "done"


def test_an_interruption_never_lands_outside_the_call():
    guard = Guard(Limits(soft_s=0.002, hard_s=60.0))
    function = load(code("def f(n):\n    for _ in range(n): pass\n    return n"), "F.f", guard=guard)
    answered = 0
    for call in range(300):
        try:
            answered += function.call(call * 500) == call * 500
        except UserCodeError as error:
            assert "was interrupted" in error.message  # noqa: PT017  # either outcome is right; nothing else is
        for _ in range(200):
            answered += 0
    guard.close()
    assert answered > 0


def test_each_thread_is_watched_on_its_own(guarded):
    function = guarded("def f(forever):\n    while forever:\n        pass\n    return 'done'")
    outcomes: dict[str, object] = {}

    def call(name: str, *, forever: bool) -> None:
        try:
            outcomes[name] = function.call(forever)
        except UserCodeError as error:
            outcomes[name] = error.message

    threads = [
        threading.Thread(target=call, args=(name,), kwargs={"forever": name == "hangs"})
        for name in ("hangs", "works", "works too")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"hangs": "took longer than 20 ms and was interrupted", "works": "done", "works too": "done"}


def test_a_function_that_cannot_be_interrupted_is_given_up():
    reading, writing = os.pipe()
    told: list[UserFunction] = []

    def on_given_up(function: UserFunction) -> None:
        told.append(function)
        os.write(writing, b"x")  # lets the call go

    guard = Guard(Limits(soft_s=0.01, hard_s=0.05), on_given_up)
    source = "import os\ndef f(reading):\n    return os.read(reading, 1)"
    function = load(code(source), "F.f", guard=guard, identity="this one")
    assert "was interrupted" in refusal(function, reading).message
    assert [each.identity for each in told] == ["this one"]
    assert "took longer than 50 ms and could not be interrupted" in refusal(function, reading).message
    assert function.given_up in refusal(function, reading).message
    guard.close()
    os.close(reading)
    os.close(writing)


def test_a_closed_guard_still_calls():
    guard = Guard(QUICK)
    guard.close()
    assert load(code("def f(): return 1"), "F.f", guard=guard).call() == 1
    guard.close()
