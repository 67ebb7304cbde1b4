"""Every error a user can meet, in one tree.

    ThymeError
    ├── DefinitionError            a declaration is wrong; carries every Problem found, not the first
    │   ├── DeclarationValueError  also a ValueError: refused at the line that declares it
    │   ├── DeclarationTypeError   also a TypeError: refused at the line that declares it
    │   └── BreakingChange         409: an existing (name, version) would change its meaning
    ├── ConfigError                the client's configuration file or credentials cannot be read
    ├── ServiceUnavailable         503, retryable: the platform's services do not answer
    ├── RequestError               the caller's request is wrong
    │   ├── InvalidRequest         400
    │   ├── InvalidTimestamp       400, names the field
    │   ├── FailedPrecondition     400: what is asked for needs something else to be done first
    │   ├── Unauthenticated        401
    │   ├── Forbidden              403
    │   ├── NotFound               404: unknown dataset, featureset, query run, …
    │   ├── Erased                 410: what was asked for was erased
    │   ├── Conflict               409: what is asked for does not go together with what is under way
    │   ├── IdempotencyConflict    409: an idempotency key came again with another body
    │   ├── PayloadTooLarge        413
    │   ├── ReadTooLarge           400: a read would take more bytes from the online store than it may
    │   ├── QuotaExceeded          507: no more of a kind is kept on the platform until some are deleted
    │   └── RateLimited            429, retryable: the key has sent more requests than it may
    ├── TimedOut                   504, retryable: a read took longer than it may
    ├── RecordError                one record cannot be accepted; it goes to the dead letters
    ├── UserCodeError              an exception raised inside an extractor or a transform
    ├── BrokenFeatureset           a committed featureset cannot be compiled for reading
    ├── ValueOverflow              an integer result does not fit 64 bits
    ├── StoreUnavailable           503, retryable: the online store, log or registry does not answer
    │   ├── LogFull                503, retryable: the hot log or the online store is at its budget
    │   ├── ArchiveUnavailable     503, retryable: the archive cannot be read or written
    │   ├── MaybeTaken             503, not retryable: part of an append may have been accepted
    │   └── Fenced                 terminal for this worker: another one owns the key group now
    ├── CorruptState               stored bytes have an unknown format version or do not decode
    ├── SourceError                retryable: an outside system did not give its records
    ├── MissingDriver              an optional package is not installed; names the extra
    └── ClusterError               start, stop or supervision of the local cluster failed

Every class keeps its state in ``args`` so that it survives pickling between Ray processes.
``except Exception`` is allowed at three places only: the request boundary, the worker loop, and
the call into user code.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class ThymeError(Exception):
    """Base of the tree.

    Class attributes:
        code: stable machine-readable name, part of the public contract.
        status: HTTP status the services answer with.
        retryable: whether the same call may succeed later without a change.
        remedy: one sentence that says what to do.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    remedy: ClassVar[str] = "Look at the service's log under the correlation id."

    @property
    def details(self) -> list[dict[str, object]] | None:
        """Structured facts for the ``details`` member of the error body, if there are any."""
        return None


class Problem(NamedTuple):
    """One thing wrong with a definition.

    ``file`` and ``line`` point into the user's module (``None`` when a commit came without
    locations); ``subject`` is ``Class.member``; ``hint`` says what to do.
    """

    code: str
    subject: str
    message: str
    hint: str = ""
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}  " if self.file else ""
        hint = f"\n    {self.hint}" if self.hint else ""
        return f"{where}{self.subject}\n    {self.message}  [{self.code}]{hint}"


class DefinitionError(ThymeError):
    """One or more declarations are wrong; ``problems`` holds all of them."""

    code = "invalid_definition"
    status = 400
    remedy = "Mend every listed problem and commit again; nothing was committed."

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''}; nothing was committed."
        return "\n".join([*(str(problem) for problem in self.problems), head])

    @property
    def details(self) -> list[dict[str, object]]:
        """Every problem as a dict."""
        return [dict(problem._asdict()) for problem in self.problems]


class DeclarationValueError(DefinitionError, ValueError):
    """A declaration holds a value that is refused at once, outside :func:`featurelib.compile.compile_module`."""


class DeclarationTypeError(DefinitionError, TypeError):
    """A declaration holds a thing of the wrong kind, refused at once outside ``compile_module``."""


class BreakingChange(DefinitionError):
    """The commit would change the meaning of an existing ``(name, version)``."""

    code = "breaking_change"
    status = 409
    remedy = "Give the changed definition a new version."


class ConfigError(ThymeError):
    """The client's configuration file or its credentials cannot be read."""

    code = "invalid_config"
    remedy = "Mend the named file; the keys are api_url, api_base, query_url, frontend_url and api_key."


class ServiceUnavailable(ThymeError):
    """A service of the platform cannot be reached."""

    code = "service_unavailable"
    status = 503
    retryable = True
    remedy = "Start the platform with `thyme up`, or set THYME_API_BASE and THYME_QUERY_URL."


class RequestError(ThymeError):
    """The caller's request is wrong; subclasses say how."""

    code = "invalid_request"
    status = 400
    remedy = "Correct the request; the detail names the member at fault."


class InvalidRequest(RequestError):
    """Malformed body, unknown parameter, wrong type."""


class InvalidTimestamp(RequestError):
    """A timestamp is not of an accepted form (contract decision 1)."""

    code = "invalid_timestamp"
    remedy = "Send ISO 8601 (UTC when no zone is given) or epoch seconds."


class FailedPrecondition(RequestError):
    """What the caller asks for needs something else to be done first."""

    code = "failed_precondition"
    remedy = "The detail names what is to be done first."


class Unauthenticated(RequestError):
    """The bearer key is missing, unknown, expired or revoked."""

    code = "unauthenticated"
    status = 401
    remedy = "Send 'Authorization: Bearer <key>'; the first start wrote one to ~/.thyme/credentials."


class Forbidden(RequestError):
    """The key is valid but its role does not allow this."""

    code = "forbidden"
    status = 403
    remedy = "Use a key with a higher role."


class NotFound(RequestError):
    """Nothing of that name exists."""

    code = "not_found"
    status = 404
    remedy = "Check the name; `thyme status` lists what is committed."


class Conflict(RequestError):
    """What the caller asks for does not go together with what is, or is under way."""

    code = "conflict"
    status = 409
    remedy = "The detail names what is in the way; end that first, or wait until it is over."


class IdempotencyConflict(RequestError):
    """An idempotency key was used before, for another body, or for this one before the columns changed."""

    code = "idempotency_conflict"
    status = 409
    remedy = "Send the same bytes under the key again, or give the new request a key of its own."


class Erased(RequestError):
    """What the call asks for again was about an entity that has been erased."""

    code = "erased"
    status = 410
    remedy = "None: it cannot be had again."


class PayloadTooLarge(RequestError):
    """The body is larger than the service takes."""

    code = "payload_too_large"
    status = 413
    remedy = "Send less at once."


class QuotaExceeded(RequestError):
    """As much is kept of what the caller wants kept as the platform may keep."""

    code = "quota_exceeded"
    status = 507
    remedy = "Delete what is no longer needed, or have the setting that the detail names raised."


class ReadTooLarge(FailedPrecondition):
    """A read would take more bytes from the online store than it may."""

    remedy = "Ask for fewer features, allow partial results, or raise the limit in the settings."


class RateLimited(RequestError):
    """The key has sent more requests than its rate limit allows; the second argument says when it may again."""

    code = "rate_limited"
    status = 429
    retryable = True
    remedy = "Send more slowly, wait as long as Retry-After says, or ask an admin for a key with a higher limit."

    @property
    def retry_after_s(self) -> float:
        """The second argument, seconds; one where it is left out."""
        return float(self.args[1]) if len(self.args) > 1 else 1.0

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TimedOut(ThymeError):
    """A read took longer than it may."""

    code = "timed_out"
    status = 504
    retryable = True
    remedy = "Ask again, for less at once or with a latency budget; a setting says how long a read may take."


class RecordError(ThymeError):
    """One record does not fit its dataset. ``reason`` is a stable code, ``field`` the column at fault."""

    code = "invalid_record"
    status = 400
    remedy = "The record is kept among the dataset's dead letters with this reason."

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(reason, field, message)
        self.reason = reason
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return self.message


class UserCodeError(ThymeError):
    """User code raised, or returned the wrong shape. ``location`` is the user's ``file:line``."""

    code = "user_code_error"
    status = 500
    remedy = "The error is in the named user function; mend it and commit again."

    def __init__(self, function: str, location: str, message: str) -> None:
        super().__init__(function, location, message)
        self.function = function
        self.location = location
        self.message = message

    def __str__(self) -> str:
        return f"{self.location} in {self.function}: {self.message}"


class BrokenFeatureset(ThymeError):
    """A committed featureset cannot be served: what it reads or runs does not compile in this version."""

    code = "broken_featureset"
    remedy = "Mend what the detail names and commit again; other featuresets are served."


class ValueOverflow(ThymeError):
    """An integer aggregate left the 64-bit range; it is never wrapped (decision 11)."""

    code = "overflow"
    remedy = "Aggregate a float, or scale the column down."


class StoreUnavailable(ThymeError):
    """The online store, the log or the registry did not answer."""

    code = "store_unavailable"
    status = 503
    retryable = True
    remedy = "Retry; the platform brings its stores back by itself."


class LogFull(StoreUnavailable):
    """There is no room for more records within the declared budgets; none of those sent was taken."""

    code = "log_full"
    remedy = (
        "Send the same records again later. If it lasts, see in `thyme logs` whether the archive can be written, "
        "or raise online.log_budget_mb or online.memory_mb."
    )


class ArchiveUnavailable(StoreUnavailable):
    """The archive's folder or object store did not take or give records."""

    code = "archive_unavailable"
    remedy = "Free space below archive.url, or make it writable; the archive copy goes on by itself."


class MaybeTaken(StoreUnavailable):
    """The log failed in the middle of records that have no identity: some may be in it, and sent again count twice."""

    code = "maybe_taken"
    retryable = False
    remedy = "See by a read or by the job's row count what was taken before sending anything again."


class Fenced(StoreUnavailable):
    """A newer owner of the key group exists; this writer must stop."""

    code = "fenced"
    retryable = False
    remedy = "None needed: the newer worker goes on."


class CorruptState(ThymeError):
    """Stored bytes cannot be read by this version."""

    code = "corrupt_state"
    remedy = "Restore the data directory, or backfill the pipeline."


class SourceError(ThymeError):
    """An outside system failed to give its records."""

    code = "source_error"
    status = 502
    retryable = True
    remedy = "The source is polled again; check that it can be reached."


class MissingDriver(ThymeError):
    """An optional package is not installed."""

    code = "missing_driver"
    status = 501

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.package} is not installed; pip install 'thyme-on-ray[{self.extra}]'"


class ClusterError(ThymeError):
    """The local cluster could not be started, stopped or supervised."""

    code = "cluster_error"
    remedy = "The message names the process and its log."


def without_folder(error: BaseException) -> str:
    """The error's text; that of a failed import without the folder of the package on this machine."""
    folder = f" ({error.path})" if isinstance(error, ImportError) and error.path else ""
    return str(error).removesuffix(folder) if folder else str(error)
