"""Takes from a process, for good, what it does not need: Linux's Landlock, through its three system calls.

A confined process reads Python's own files and nothing else, writes nothing, opens no TCP connection, and sends no
signal to a process outside; not even a process of the same user gets these back. What it holds open already stays.
Numbers and layouts are those of <https://docs.kernel.org/userspace-api/landlock.html>; the system calls have the same
numbers on every architecture.

Imports nothing of ours: it runs before anything else does, since only the calling thread and those it starts later
are confined.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE
# Per version of the interface, how many rights on files it knows: those it does not know it refuses to be asked for.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP_SINCE, _SCOPES_SINCE = 4, 6
_BIND_AND_CONNECT, _ABSTRACT_SOCKETS_AND_SIGNALS = 0b11, 0b11

_SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/ssl", "/dev/urandom")
_NOWHERE = Path("/dev/null")


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The kernel's version of the interface; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    asked = _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    return max(0, asked)


def confine(readable: Iterable[str], hidden: Iterable[str]) -> bool:
    """Confine this thread and all it will start; whether the kernel can.

    Args:
        readable: files and directories that stay readable, beside Python's own.
        hidden: directories that are not readable, also where they lie in one that is.

    Raises:
        OSError: the kernel has Landlock and refused.
    """
    known = version()
    if not known:
        return False
    # A directory that holds something hidden cannot be listed afterwards: what imports need of it is read now.
    PathFinder.find_spec("a_module_that_is_nowhere")
    rights = (1 << _FILE_RIGHTS.get(known, max(_FILE_RIGHTS.values()))) - 1
    tcp = _BIND_AND_CONNECT if known >= _TCP_SINCE else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if known >= _SCOPES_SINCE else 0
    ruleset = _Ruleset(rights, tcp, scopes)
    descriptor = _checked(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(ctypes.sizeof(ruleset)), _none())
    try:
        for path in _shown([*_python(), *_SYSTEM, *readable], hidden):
            _allow(descriptor, path, _EXECUTE | _READ_FILE | _READ_DIR)
        _allow(descriptor, _NOWHERE, _READ_FILE | _WRITE_FILE)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
        _checked(_RESTRICT_SELF, ctypes.c_int(descriptor), _none())
    finally:
        os.close(descriptor)
    return True


def homes() -> list[str]:
    """Where this user's own files are, whatever the environment says."""
    return [pwd.getpwuid(os.getuid()).pw_dir, *([home] if (home := os.environ.get("HOME")) else [])]


def _python() -> Iterator[str]:
    yield from {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}


def _shown(paths: Iterable[str], hidden: Iterable[str]) -> Iterator[Path]:
    """Those that exist; of a directory that holds something hidden, what lies in it and does not."""
    kept_back = [Path(each).resolve() for each in hidden]

    def holds_some(path: Path) -> bool:
        return any(each.is_relative_to(path) for each in kept_back)

    def is_in_some(path: Path) -> bool:
        return any(path.is_relative_to(each) for each in kept_back)

    for path in dict.fromkeys(Path(each).resolve() for each in paths if each):
        if not path.exists():
            continue
        if holds_some(path):
            # Resolved: what is hidden may have a second name here.
            children = (child.resolve() for child in path.iterdir())
            yield from (child for child in children if child.exists() and not (holds_some(child) or is_in_some(child)))
        else:
            yield path


def _allow(ruleset: int, path: Path, rights: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        of_it = rights if path.is_dir() else rights & _OF_FILES
        rule = _Beneath(of_it, parent)
        _checked(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), _none())
    finally:
        os.close(parent)


def _none() -> ctypes.c_uint32:
    return ctypes.c_uint32(0)


def _checked(number: int, *arguments: object) -> int:
    answer = _call(number, *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return answer


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    answer: int = libc.syscall(ctypes.c_long(number), *arguments)
    return answer
