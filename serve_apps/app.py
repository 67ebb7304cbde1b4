"""The Ray Serve application: `serve run serve_apps.app:app`, or `configs/serve.yaml`.

The only module here that knows Ray. Each replica serves the whole HTTP surface on the port of its deployment
(decision 31: every route on both), through a listener of its own; Serve starts, checks and replaces replicas.
"""

from __future__ import annotations

import socket
from typing import Any

from ray import serve
from ray.serve import Deployment

from cluster.processes import begin_session
from cluster.sockets import bind_listener, receive_listener
from featurelib.clock import SystemClock
from featurelib.errors import ClusterError
from featurelib.settings import Settings, load_settings
from featurelib.stores.registry import Registry
from serve_apps.listener import Listener
from serve_apps.logs import configure_logs
from serve_apps.services import open_services
from serve_apps.siblings import Siblings
from serve_apps.web import Application

# The same as in configs/serve.yaml, which says why: `serve run serve_apps.app:app` reads only this.
_ACTOR = {"num_cpus": 1}
_CHECK_EVERY_S = 2
_CHECK_WITHIN_S = 10
_STOP_WITHIN_S = 20


class _Replica:
    """A listener with the life of a Serve replica."""

    def __init__(self, name: str, port: int, settings: Settings) -> None:
        configure_logs()
        begin_session()
        clock = SystemClock()
        registry = Registry(settings.registry_url, clock)
        registry.migrate()
        registry.close()
        siblings = Siblings.of(settings, name)
        application = Application(lambda: open_services(settings, clock, siblings))
        self._listener = Listener(application, _listening(name, port, settings))
        self._listener.start()

    def check_health(self) -> None:
        """What Serve asks; an exception makes it replace the replica."""
        self._listener.check()

    def __del__(self) -> None:
        # Serve calls this when it stops a replica; a constructor that failed has no listener.
        listener = getattr(self, "_listener", None)
        if listener is not None:
            listener.stop()


def _listening(name: str, port: int, settings: Settings) -> socket.socket:
    if settings.listener_socket:
        return receive_listener(settings.listener_socket, name)
    try:
        return bind_listener(settings.serving.host, port)
    except OSError as error:
        raise ClusterError(f"{settings.serving.host}:{port} cannot be listened on: {error.strerror}") from error


class DefinitionServiceReplica(_Replica):
    """The definition service, on the control port."""

    def __init__(self) -> None:
        settings = load_settings()
        super().__init__("definition", settings.serving.definition_port, settings)


class QueryServerReplica(_Replica):
    """The query server, on the fast port.

    Args:
        beside: the definition service. Serve starts what an application's root is bound to; it is not called.
    """

    def __init__(self, beside: Any) -> None:
        self._beside = beside
        settings = load_settings()
        super().__init__("query", settings.serving.query_port, settings)


def _deployment(name: str, replica: type[_Replica], replicas: int) -> Deployment:
    configure = serve.deployment(
        name=name,
        num_replicas=replicas,
        ray_actor_options=_ACTOR,
        health_check_period_s=_CHECK_EVERY_S,
        health_check_timeout_s=_CHECK_WITHIN_S,
        graceful_shutdown_timeout_s=_STOP_WITHIN_S,
    )
    return configure(replica)


DefinitionService = _deployment("DefinitionService", DefinitionServiceReplica, 1)
QueryServer = _deployment("QueryServer", QueryServerReplica, load_settings().serving.query_replicas)

app = QueryServer.bind(DefinitionService.bind())
