"""The one wrapper on what Ray's dashboard offers over HTTP: jobs and Serve applications.

It speaks the documented REST interface with the cluster's token. Ray's own ``JobSubmissionClient`` speaks
the same one, but importing it loads Ray: 100 MB in a watcher that otherwise needs 40, and a second in every CLI call.
`connect` is for processes that do need Ray: it joins the cluster of this data directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

import httpx2
from pydantic import BaseModel, ConfigDict

from cluster.layout import NODE_ADDRESS, Layout
from cluster.state import read_state
from featurelib.errors import ClusterError
from featurelib.settings import Settings

JobStatus = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]

_TERMINAL = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
_ANSWER_S = 15.0
# The first deploy starts Serve's controller, whose imports take seconds on a busy machine.
_DEPLOY_S = 60.0


class Job(BaseModel):
    """A submitted job."""

    model_config = ConfigDict(frozen=True)

    submission_id: str
    status: JobStatus
    entrypoint: str
    message: str = ""
    metadata: dict[str, str] = {}

    @property
    def running(self) -> bool:
        """Whether it is queued or runs."""
        return self.status not in _TERMINAL


class Application(BaseModel):
    """A Serve application; ``status`` as Serve names it (``RUNNING``, ``DEPLOYING``, ``DEPLOY_FAILED`` …)."""

    model_config = ConfigDict(frozen=True)

    name: str
    status: str
    message: str = ""


class Launcher:
    """Submits, follows and stops Ray jobs, and deploys Serve applications.

    Every method raises :class:`ClusterError` when the dashboard does not answer or refuses.
    """

    def __init__(self, dashboard_url: str, token: str) -> None:
        self._http = httpx2.Client(
            base_url=dashboard_url, headers={"Authorization": f"Bearer {token}"}, timeout=_ANSWER_S, trust_env=False
        )

    @classmethod
    def of(cls, settings: Settings) -> Launcher:
        """The launcher of the cluster of this data directory."""
        layout = Layout(settings)
        return cls(layout.dashboard_url, layout.secret("ray-token"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def answers(self) -> bool:
        """Whether the dashboard is up."""
        try:
            return self._http.get("/api/version", timeout=2.0).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    def submit(
        self,
        entrypoint: str,
        submission_id: str,
        *,
        environment: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        cpus: float = 0.1,
    ) -> str:
        """Run ``entrypoint`` as a Ray job; returns its submission id.

        ``cpus`` must be above zero: a job that asks for none is put on the head, whose loss it must survive.
        """
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "runtime_env": {"env_vars": dict(environment)} if environment else {},
            "metadata": dict(metadata or {}),
            "entrypoint_num_cpus": cpus,
        }
        answer: dict[str, str] = self._call("POST", "/api/jobs/", json=body, timeout=_DEPLOY_S).json()
        return answer["submission_id"]

    def job(self, submission_id: str) -> Job | None:
        """The job, or ``None`` when Ray knows none of that id."""
        answer = self._call("GET", f"/api/jobs/{submission_id}", absent_ok=True)
        return _job(answer.json()) if answer.status_code == httpx2.codes.OK else None

    def jobs(self) -> list[Job]:
        """Every submitted job Ray remembers."""
        found = self._call("GET", "/api/jobs/").json()
        return [_job(each) for each in found if each.get("submission_id")]

    def stop(self, submission_id: str) -> bool:
        """Ask the job to stop (SIGTERM, SIGKILL after three seconds); ``False`` when it is unknown or over."""
        answer = self._call("POST", f"/api/jobs/{submission_id}/stop", absent_ok=True)
        return answer.status_code == httpx2.codes.OK and bool(answer.json()["stopped"])

    def logs(self, submission_id: str) -> str:
        """Output of the job's driver so far."""
        answer = self._call("GET", f"/api/jobs/{submission_id}/logs")
        return str(answer.json().get("logs") or "")

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Make Serve run ``config`` (Serve's own schema); the same config again changes nothing."""
        self._call("PUT", "/api/serve/applications/", json=dict(config), timeout=_DEPLOY_S)

    def undeploy(self) -> None:
        """Stop Serve; replicas end their requests first."""
        self._call("DELETE", "/api/serve/applications/", timeout=_DEPLOY_S)

    def applications(self) -> dict[str, Application]:
        """Serve's applications by name."""
        found = self._call("GET", "/api/serve/applications/").json().get("applications", {})
        return {name: Application(name=name, status=it["status"], message=it["message"]) for name, it in found.items()}

    def _call(self, method: str, path: str, *, absent_ok: bool = False, **options: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx2.HTTPError as error:
            message = f"the Ray dashboard does not answer {method} {path}: {error}"
            raise ClusterError(message) from error
        if answer.is_error and not (absent_ok and answer.status_code == httpx2.codes.NOT_FOUND):
            message = f"the Ray dashboard refused {method} {path} ({answer.status_code}): {answer.text[-800:].strip()}"
            raise ClusterError(message)
        return answer


def connect(settings: Settings, **options: Any) -> None:
    """``ray.init`` of this process into the running cluster; ``options`` go to it (``namespace=``, …).

    It joins the worker raylet, not the head's as Ray would by default, so that this driver outlives a lost head.

    Raises:
        ClusterError: no cluster of this data directory is up.
    """
    import ray  # over a second; only processes that compute need it

    layout = Layout(settings)
    state = read_state(layout.state_file)
    if state is None or "node" not in state.parts:
        message = f"no cluster of {layout.data} is up; start it with `thyme up`"
        raise ClusterError(message)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(layout.secret_path("ray-token"))
    ray.init(
        address=layout.gcs_address(state.ports),
        _node_ip_address=NODE_ADDRESS,
        _temp_dir=str(layout.ray_dir),
        **options,
    )


def _job(found: Mapping[str, Any]) -> Job:
    return Job(
        submission_id=found["submission_id"],
        status=found["status"],
        entrypoint=found["entrypoint"],
        message=found.get("message") or "",
        metadata=found.get("metadata") or {},
    )
