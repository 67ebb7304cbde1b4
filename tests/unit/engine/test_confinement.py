"""What an extractor in a child process cannot get at: files, other processes, the network."""

import os
import socket

import pytest

from featurelib.definitions import PyCode
from featurelib.engine import confinement
from featurelib.engine.extractor import Scope, Task, Typed
from featurelib.engine.processes import Processes
from featurelib.engine.user_code import Limits

AT = 1_772_366_400_000_000
SECRET = "tk_nobody-may-read-this"

pytestmark = pytest.mark.skipif(confinement.version() < 6, reason="this kernel's Landlock does not know all of it")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    made = tmp_path_factory.mktemp("project") / "platform"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def said(data_dir):
    """What a function of the text ``x`` returns in a confined child."""
    (data_dir.parent / "beside.py").write_text("said = 'imported'")
    with pytest.MonkeyPatch.context() as patch:
        # The data directory lies below a directory that Python imports from, as a checkout's own may.
        patch.syspath_prepend(str(data_dir.parent))
        processes = Processes(Limits(soft_s=5.0, hard_s=10.0), count=1, hidden=[str(data_dir)])

    def said(body: str, given: str) -> str:
        source = (
            f"def f(cls, ts, x):\n    try:\n        {body}\n    except OSError as e:\n        return type(e).__name__"
        )
        made = PyCode(entry_point="f", source=source, file="features.py", line=1)
        task = Task("F.f", body, made, (Typed("x", "str"),), (Typed("y", "str"),), (), vectorized=False)
        (value,) = processes.load(task).one([given], Scope({}, AT, None))
        return value

    yield said
    processes.close()


def test_a_secret_of_the_platform_is_not_read(said, data_dir):
    (data_dir / "admin-key").write_text(SECRET)
    assert said("return open(x).read()", str(data_dir / "admin-key")) == "PermissionError"


def test_a_folder_of_the_platform_is_not_listed(said, data_dir):
    assert said("import os; return str(os.listdir(x))", str(data_dir)) == "PermissionError"


def test_the_environment_and_the_memory_of_the_service_are_not_read(said):
    for what in ("environ", "mem", "maps"):
        assert said("return open(x, 'rb').read(8).hex()", f"/proc/{os.getpid()}/{what}") == "PermissionError"


def test_nothing_is_written(said, tmp_path):
    assert said("return str(open(x, 'w').write('here'))", str(tmp_path / "left")) == "PermissionError"
    assert list(tmp_path.iterdir()) == []


def test_no_connection_is_made(said):
    with socket.create_server(("127.0.0.1", 0)) as server:
        body = "import socket; return str(socket.create_connection(('127.0.0.1', int(x))))"
        assert said(body, str(server.getsockname()[1])) == "PermissionError"


def test_no_other_process_is_signalled(said):
    assert said("import os; return str(os.kill(int(x), 0))", str(os.getpid())) == "PermissionError"


def test_pythons_own_modules_are_imported(said):
    assert said("import colorsys, json; return json.dumps(x)", "read") == '"read"'


def test_a_users_module_beside_the_platforms_files_is_imported(said):
    assert said("import beside; return beside.said", "") == "imported"


def test_a_process_it_starts_is_confined_too(said, data_dir):
    (data_dir / "admin-key").write_text(SECRET)
    body = "import subprocess; return subprocess.run(['cat', x], capture_output=True, text=True).stdout or 'nothing'"
    assert said(body, str(data_dir / "admin-key")) == "nothing"
