"""Every setting of the platform, in one typed tree.

Precedence: arguments, then environment (``THYME_<GROUP>__<FIELD>``), then the TOML file named by
``THYME_SETTINGS`` (default ``<data_dir>/thyme.toml``), then the default below. Unknown keys are
refused. ``os.environ`` is read nowhere else, except by a connector's ``Secret(env=…)``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)


class OnlineSettings(_Group):
    """The Redis server that holds online values, pipeline state and the hot log."""

    redis_url: SecretStr = SecretStr("")
    """``redis://``, ``rediss://`` or ``unix://`` URL; empty: `thyme up` starts a server of its own."""

    append_fsync: str = "everysec"
    """Fsync policy of the embedded server: ``everysec`` loses at most a second on power loss, ``always`` nothing."""

    memory_mb: PositiveInt | None = None
    """Budget of the whole server: the embedded one is started with it as ``maxmemory`` (2048 when left out). For a
    server given by URL, left out: its own ``maxmemory``. Appends are refused (503, ``log_full``) from 95 % on; the
    rest is for workers' commits. Nothing is ever evicted."""

    log_budget_mb: PositiveInt = 512
    """Budget of the hot log of all datasets within it. Over it, all that is archived is trimmed at once; while that is
    not enough, appends are refused (503, ``log_full``)."""

    hot_log_ms: PositiveInt = 60_000
    """How long a record stays in the hot log after it was accepted, when it is archived earlier; live workers find
    theirs there. Records that are not archived stay in any case."""


class RegistrySettings(_Group):
    """The SQL database of definitions, jobs, events, keys and query runs."""

    url: SecretStr = SecretStr("")
    """SQLAlchemy URL, SQLite or PostgreSQL; empty: SQLite (WAL) inside the data directory."""

    query_runs_days: PositiveInt = 90
    """How long the audit keeps query runs; older ones cannot be listed or replayed any more."""

    digest_key: SecretStr = SecretStr("")
    """64 hexadecimal digits: the key under which query runs keep digests of answers. Empty: one made at the first
    start, in the data directory. Where replicas have data directories of their own, give all of them one key."""


class SecretsSettings(_Group):
    """The store of secrets, in the registry's database."""

    key: SecretStr = SecretStr("")
    """64 hexadecimal digits: the key under which values are encrypted. Several, separated by commas: the first
    encrypts, the others decrypt what is older, until `thyme secrets rotate` has encrypted it anew. Empty: one made at
    first use, in the data directory. Where replicas have data directories of their own, give all of them the same."""

    refresh_s: PositiveInt = Field(default=30, le=120)
    """How often readers of sources and webhooks look whether a secret they use has changed."""


class ArchiveSettings(_Group):
    """The offline store: Delta tables."""

    url: str = ""
    """A folder or object-store URL; empty: ``archive`` inside the data directory."""

    interval_ms: PositiveInt = 2_000
    """How often it is looked whether the hot log holds records to be copied to the archive."""

    gather_ms: NonNegativeInt = 20_000
    """Least time between two archive commits of a dataset, while fewer than a quarter of `batch_rows` records wait.
    Each commit is a file of its own until files are merged, and a read of the past opens all of them. 0: every
    `interval_ms`."""

    batch_rows: PositiveInt = 200_000
    """Most rows in one archive commit of one dataset."""

    compact_every_s: PositiveInt = 300
    """How often small files of the archive are merged."""

    vacuum_every_s: PositiveInt = 86_400
    """How often files that no kept version needs are deleted; first with the first compaction after a start."""

    derived_every_s: NonNegativeInt = 3_600
    """How often the tables of derived datasets are brought up to date, merged and cleaned, by a job of its own; first
    five minutes after a start. 0: only when somebody runs that job."""

    derived_anew_every_s: NonNegativeInt = 86_400
    """How often, of these, a table that can only be made anew is made anew; an erasure does not wait for it."""

    history_hours: PositiveInt = 168
    """How long the files of earlier table versions are kept, for readers that are at it and for time travel."""


class PipelineSettings(_Group):
    """How pipelines run."""

    partition_count: PositiveInt = 2
    """Workers per pipeline, and log partitions of a new dataset (decision 33: 2 in the embedded profile)."""

    batch_rows: PositiveInt = 8_192
    """Most records a worker applies in one step."""

    poll_interval_ms: PositiveInt = 200
    """How long an idle worker blocks on its log before it looks round; records wake it at once."""

    gather_ms: NonNegativeInt = 150
    """Longest a worker that caught up lets records gather before it folds them: fewer, larger commits. It gathers
    twenty times as long as its last step took, some 40 ms where little comes; once while somebody waits."""

    niceness: int = Field(default=10, ge=0, le=19)
    """How far workers, source readers, the archiver and the upkeep of derived tables give way to reads where the
    processor is short: at 10 one has a tenth of a replica's weight. 0: not at all."""

    lease_ms: PositiveInt = 10_000
    """A worker that gives no answer for this long is ended and another one started in its place."""

    drain_ms: PositiveInt = 10_000
    """How long a worker that is to end may take for the step it is in."""

    stalled_after_ms: PositiveInt = 60_000
    """A job is shown as ``stalled`` when one step of a worker takes longer than this."""

    step_limit_ms: PositiveInt = 300_000
    """A worker whose step takes longer than this is replaced; starting counts, and may read much history. It holds for
    readers of sources too."""

    catch_up_rows: PositiveInt = 2_000_000
    """A pipeline this far behind its input catches up as a bounded Ray Data job first."""

    keep_generation_s: NonNegativeInt = 3_600
    """How long after a backfill the state that was served before is kept up to date, so that it can be rolled back to.
    It takes as much memory as the new one, and workers of its own; 0: it is dropped at once."""


class IngestSettings(_Group):
    """How sources are read and records appended."""

    batch_rows: PositiveInt = 8_192
    """Most records appended at once."""

    stream_bytes: PositiveInt = 16 * 1024 * 1024 * 1024
    """Largest body of ``POST /api/v1/log`` in a form that is taken while it comes: lines of JSON, an Arrow stream."""

    max_clock_skew_ms: PositiveInt = 300_000
    """A record dated further ahead than this never moves the watermark (decision 6)."""

    default_every_ms: PositiveInt = 5_000
    """Poll interval of a source that names none."""

    dead_letters_kept: PositiveInt = 10_000
    """Dead letters each log partition of a dataset keeps; beyond it the oldest are dropped, counted, and told of."""

    idle_after_ms: PositiveInt = 60_000
    """A log partition that accepted nothing for this long is shown as idle; its watermark stays where it is."""


class ServingSettings(_Group):
    """The two HTTP services."""

    host: str = "127.0.0.1"
    """Address both services listen on."""

    query_port: int = 8081
    """Port of the query server."""

    definition_port: int = 8080
    """Port of the definition service."""

    query_replicas: PositiveInt = 1
    """Replicas of the query server on this node; they share one listening socket."""

    watch_keys: bool = True
    """Whether the online store tells replicas of changes, so that a key which was not written is not asked for again.
    Without, every read asks the store, and is never older than the store is."""

    plan_poll_ms: PositiveInt = 400
    """How often a replica looks for a new registry version; bounds how long a revoked key still works."""

    event_poll_ms: PositiveInt = 200
    """How often a replica looks for new events while clients follow the feed."""

    event_streams: PositiveInt = 1_000
    """Most clients that follow the feed on one replica; more are refused (503) and come back."""

    max_body_bytes: PositiveInt = 16 * 1024 * 1024
    """Largest request body."""

    key_rate_limit: PositiveInt | None = None
    """Requests per second of an API key that names no limit of its own; left out: no limit. It is counted over all
    replicas; beyond it requests are refused (429, ``rate_limited``)."""

    extractor_isolation: Literal["inline", "process"] = "inline"
    """Where extractors run: in the replica (commit rights mean trust), or in child processes without its secrets."""

    extractor_soft_limit_ms: PositiveInt = 1_000
    """One call of an extractor is interrupted after this; in a batch each row is a call, or the whole frame is one."""

    extractor_hard_limit_ms: PositiveInt = 5_000
    """A call that could not be interrupted: inline the extractor is quarantined and the replica replaced, a child
    process is killed and replaced."""

    extractor_processes: PositiveInt = 2
    """Child processes per replica, so also how many calls run at once; only with ``process``."""

    offline_rows: PositiveInt = 20_000
    """Most rows of an offline read that a replica reads by itself; one with more becomes a Ray Data job, which takes
    tens of seconds before its first row and then has ``pipeline.partition_count`` workers."""

    offline_url: str = ""
    """A folder or object-store URL that replicas and Ray's workers share, where such a job leaves its rows until they
    are sent; empty: ``offline`` inside the data directory."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> ServingSettings:
        if self.extractor_hard_limit_ms < self.extractor_soft_limit_ms:
            message = "extractor_hard_limit_ms is below extractor_soft_limit_ms: nothing would be interrupted"
            raise ValueError(message)
        return self

    query_run_writer: Literal["process", "thread"] = "process"
    """What digests and stores query runs: a process beside each replica that reads features, which costs it 60 MB, or
    a thread of the replica, which costs it throughput and latency."""

    auth: bool = True
    """Whether a bearer key is required. Turn it off only on a machine nobody else reaches."""


class SnowflakeSettings(_Group):
    """The routes that speak the API of Snowflake's online feature store."""

    max_body_bytes: PositiveInt = 1024 * 1024
    """Largest body of an ingest request or a query (413 beyond); `serving.max_body_bytes` holds as well."""

    max_record_bytes: PositiveInt = 64 * 1024
    """Largest record of an ingest request, as JSON without spaces; a larger one is refused by itself
    (``RECORD_TOO_LARGE``)."""

    apply_wait_ms: PositiveInt = 2_000
    """How long an ingest request waits for the feature views to apply its records; those that have not by then are
    answered with ``UNAVAILABLE``, to be sent again."""

    remember_s: PositiveInt = 3_600
    """How long a record that is sent again is known to be held; each record takes some 350 bytes of the online store
    for so long."""

    query_budget_ms: PositiveInt = 1_000
    """How long a query waits for each of its feature views; features that are not there by then are ``TIME_OUT``."""

    workspace: str = "prod"
    """The workspace whose feature services are the feature groups."""


class TectonSettings(_Group):
    """Reads of feature services by Tecton's HTTP API."""

    batch_rows: PositiveInt = 10
    """Most rows of one get-features-batch; more are refused (400)."""

    read_limit_bytes: PositiveInt = 2 * 1024 * 1024
    """Most bytes one read takes from the online store; beyond it the read fails (400), or, where the caller allows
    partial results, leaves out the views that do not fit."""

    time_limit_ms: PositiveInt = 2_000
    """A read that takes longer is ended (504)."""

    concurrent_reads: PositiveInt = 256
    """Most reads under way at once in a replica; more are refused (429)."""

    slo_latency_ms: PositiveInt = 25
    """A read is reported as not eligible for the latency objective when a trip to the online store took longer."""


class TracingSettings(_Group):
    """Traces of requests, sent to an OpenTelemetry collector; needs the extra ``tracing``."""

    otlp_endpoint: str = ""
    """Base URL of a collector's OTLP/HTTP receiver, ``http://127.0.0.1:4318``; empty: no traces."""

    sample_ratio: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the requests traced that come without a trace of their own; the caller decides for the others."""


class TrainingSettings(_Group):
    """Training sets that are asked for over HTTP."""

    url: str = ""
    """A folder or object-store URL that replicas and Ray's workers share, where uploaded spines and training sets lie;
    empty: ``training-sets`` inside the data directory."""

    spine_roots: tuple[str, ...] = ()
    """Folders and object-store URLs below which a request may name the file of a spine; a JSON list in the environment.
    Empty: spines are uploaded. What a URL here holds of credentials and options is used and never shown."""

    upload_bytes: PositiveInt = 1024 * 1024 * 1024
    """Largest spine that is uploaded (413 beyond)."""

    keep_days: PositiveInt = 30
    """How long a training set is kept once it is over; then its files go, and it is known no more."""

    most_kept: PositiveInt = 10_000
    """Most training sets that are known at once, over or not; more are refused (507) until some are deleted."""

    kept_bytes: PositiveInt = 64 * 1024 * 1024 * 1024
    """Most bytes of uploaded spines and training sets together; where there are as many, no more are taken (507) until
    some are deleted. What is being made by then is finished."""


class MonitorSettings(_Group):
    """The monitor: compares what was served with what is true, and counts what features are like, day by day."""

    consistency_every_s: NonNegativeInt = 60
    """How often a sample of the query runs since the last time is read again point-in-time; 0: never."""

    consistency_runs: PositiveInt = 50
    """Most runs of one sample."""

    consistency_settle_s: NonNegativeInt = 30
    """How old a run is before it is read again: its record is written behind the answer."""

    mismatch_rate: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of the values compared of a featureset above which differences with a known cause are told of (warn); a
    difference without one is always told of (error)."""

    statistics_every_s: NonNegativeInt = 3_600
    """How often the statistics of the day that is not over are made anew; 0: there are none at all."""

    statistics_days: PositiveInt = 30
    """How many days back statistics are made and kept."""

    statistics_rows: PositiveInt = 10_000
    """Most entities of a featureset whose values a day's statistics are of; more are sampled by key."""

    drift_days: PositiveInt = 7
    """The days before a day that it is compared with."""

    drift_psi: float = Field(default=0.25, gt=0.0)
    """Population stability index from which a feature is told of as drifting."""

    drift_rows: PositiveInt = 500
    """Fewest values, of the day and of the days before it, with which drift is told of: below, chance alone gives a
    stability index near the usual threshold."""

    @property
    def is_on(self) -> bool:
        """Whether there is anything for a monitor to do."""
        return bool(self.consistency_every_s or self.statistics_every_s)


class ClusterSettings(_Group):
    """The embedded cluster of `thyme up`."""

    cpus: PositiveInt = 16
    """Logical CPUs Ray may hand out on this node: most workers wait, so more than the cores."""

    object_store_mb: PositiveInt = 256
    """Ray's shared-memory object store."""

    dashboard_port: int = 8265
    """Port of the Ray dashboard and its job API."""


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix="THYME_", env_nested_delimiter="__", extra="ignore", use_attribute_docstrings=True, frozen=True
    )

    data_dir: Path = Field(default_factory=lambda: Path.home() / ".thyme" / "platform")
    """Everything the embedded platform stores lives below this directory."""

    listener_socket: str = ""
    """Unix socket that hands out the services' listening sockets; `thyme up` sets it. Empty: replicas bind."""

    online: OnlineSettings = OnlineSettings()
    registry: RegistrySettings = RegistrySettings()
    secrets: SecretsSettings = SecretsSettings()
    archive: ArchiveSettings = ArchiveSettings()
    pipeline: PipelineSettings = PipelineSettings()
    ingest: IngestSettings = IngestSettings()
    serving: ServingSettings = ServingSettings()
    snowflake: SnowflakeSettings = SnowflakeSettings()
    tecton: TectonSettings = TectonSettings()
    tracing: TracingSettings = TracingSettings()
    training: TrainingSettings = TrainingSettings()
    monitor: MonitorSettings = MonitorSettings()
    cluster: ClusterSettings = ClusterSettings()

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL of the registry."""
        return self.registry.url.get_secret_value() or f"sqlite:///{self.data_dir / 'registry.db'}"

    @property
    def offline_url(self) -> str:
        """Root of the folders of large offline reads."""
        return self.serving.offline_url or str(self.data_dir / "offline")

    @property
    def training_url(self) -> str:
        """Root of the folders of training sets that are asked for over HTTP."""
        return self.training.url or str(self.data_dir / "training-sets")

    @property
    def archive_url(self) -> str:
        """Root of the archive's Delta tables."""
        return self.archive.url or str(self.data_dir / "archive")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # fixed by the framework; there is no .env file
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, TOML file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _settings_file())


def _settings_file() -> Path:
    import os  # the one place that may read the environment

    named = os.environ.get("THYME_SETTINGS")
    root = os.environ.get("THYME_DATA_DIR") or Path.home() / ".thyme" / "platform"
    return Path(named) if named else Path(root) / "thyme.toml"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; ``overrides`` win over environment and file."""
    return Settings(**overrides)
