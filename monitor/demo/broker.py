"""A Kafka broker inside this process: librdkafka's mock cluster, taken from the confluent-kafka wheel.

The C library that confluent-kafka brings can play a Kafka cluster on loopback ports of its own, for its own tests. We
reach those functions with ctypes, so that `tidemark demo` and fast tests speak the real protocol with nothing to
install or start. It holds keys, headers, timestamps, all four codecs, group offsets, begin and end offsets.

What it does not do, and what must be shown on a real broker therefore: two members in one group, `offsets_for_times`,
topics made by an admin client, restarts, TLS, SASL, and protocol negotiation: kafka-python must be told
`api_version=(2, 3)`. A partition keeps 5 MiB or 100,000 message sets and drops the oldest silently. Rejoining a group
waits the session timeout less a second.

The functions belong to librdkafka's test interface, which may change: the version is pinned in constraints.txt.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from types import TracebackType
from typing import Any

from monitor.errors import ConfigError

#: The newest protocol level that the mock cluster speaks; kafka-python takes it as `api_version`.
API_VERSION = (2, 3)

_PRODUCER = 0                                       # rd_kafka_type_t; the owning handle may be of either type
_POINTER, _TEXT, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "rd_kafka_conf_new": (_POINTER, []),
    "rd_kafka_conf_set": (_INT, [_POINTER, _TEXT, _TEXT, _TEXT, ctypes.c_size_t]),
    "rd_kafka_new": (_POINTER, [_INT, _POINTER, _TEXT, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [_POINTER]),
    "rd_kafka_mock_cluster_new": (_POINTER, [_POINTER, _INT]),
    "rd_kafka_mock_cluster_destroy": (None, [_POINTER]),
    "rd_kafka_mock_cluster_bootstraps": (_TEXT, [_POINTER]),
    "rd_kafka_mock_topic_create": (_INT, [_POINTER, _TEXT, _INT, _INT]),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [_POINTER, ctypes.c_int32]),
}


def _library() -> ctypes.CDLL:
    """librdkafka as the wheel carries it, with the signatures that we call."""
    spec = importlib.util.find_spec("confluent_kafka")
    if spec is None or spec.origin is None:
        raise ConfigError("the in-process broker: expected the package confluent-kafka, found none; "
                          "install it with: pip install 'tidemark[demo]'")
    import confluent_kafka  # noqa: F401 (loads the libraries that librdkafka itself needs)

    folder = Path(spec.origin).parent.parent / "confluent_kafka.libs"
    found = sorted(folder.glob("librdkafka*.so*"))
    if not found:
        raise ConfigError(f"the in-process broker: expected librdkafka in {folder}, found none; "
                          "confluent-kafka must be installed from its wheel, not from a distribution's package")
    library = ctypes.CDLL(str(found[0]))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class InProcessBroker:
    """A Kafka-protocol broker that lives as long as this object; a context manager.

    bootstrap_servers : "127.0.0.1:port" of the brokers, comma-separated
    """

    def __init__(self, brokers: int = 1) -> None:
        self._library = library = _library()
        error = ctypes.create_string_buffer(512)
        options = library.rd_kafka_conf_new()
        library.rd_kafka_conf_set(options, b"log_level", b"2", error, len(error))      # critical only: no stderr noise
        self._handle = library.rd_kafka_new(_PRODUCER, options, error, len(error))
        if not self._handle:
            raise ConfigError(f"the in-process broker: expected to start, got {error.value.decode()!r}")
        self._cluster = library.rd_kafka_mock_cluster_new(self._handle, brokers)
        library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.bootstrap_servers: str = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def create_topic(self, name: str, partitions: int = 1) -> str:
        """Make a topic and return its name; a topic that exists is an error."""
        if code := self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1):
            raise ConfigError(f"the in-process broker: expected to create topic {name!r}, got librdkafka error {code}; "
                              "it may exist already")
        return name

    def producer(self) -> Any:
        """A producer for this broker, batching for 20 ms and compressing with lz4."""
        from confluent_kafka import Producer

        return Producer({"bootstrap.servers": self.bootstrap_servers, "compression.type": "lz4", "linger.ms": 20,
                         "log_level": 2})

    def close(self) -> None:
        """End the broker and free its ports; safe to call twice."""
        if self._cluster:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._handle)
            self._cluster = self._handle = None

    def __enter__(self) -> InProcessBroker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
