"""A schema registry over its REST interface: what a message's schema id stands for.

An id means the same for ever, so a schema is fetched once. A registry that does not answer is a SourceError: the
source is polled again and no record is lost. One that answers and does not know the schema costs the records that
name it; it is asked again after half a minute, in case the registry came up before its content.

The requests and error codes are those of Confluent's Schema Registry
(https://docs.confluent.io/platform/current/schema-registry/develop/api.html), which others speak too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
import stamina

from featurelib.clock import SECOND, Clock, Instant
from featurelib.errors import SourceError

_TIMEOUT_S = 5.0
_ATTEMPTS = 3
_UNKNOWN_KEPT_US = 30 * SECOND
# Subject, version or schema not found: the registry's own word, where a bare 404 may come from any web server.
_NOT_FOUND_CODES = (40401, 40402, 40403)
_ACCEPT = "application/vnd.schemaregistry.v1+json, application/json"


class UnknownSchemaError(Exception):
    """The registry does not know the schema; the message says which."""


class Reference(NamedTuple):
    """A schema that another one imports under ``name``."""

    name: str
    subject: str
    version: int


class Schema(NamedTuple):
    """A registered schema. ``text`` is Avro JSON, JSON Schema, or a base64 ``FileDescriptorProto``."""

    kind: str
    text: str
    references: tuple[Reference, ...]


class SchemaRegistry:
    """Looks schemas up and keeps them.

    Args:
        url: of the registry; a user and a password in it are sent as basic authentication and never shown.
        source: the source as people know it, for messages.
        clock: says when an unknown schema is asked for again.
        serialized: whether schemas are asked for in their serialized form (Protobuf).
    """

    def __init__(self, url: str, source: str, clock: Clock, *, serialized: bool) -> None:
        parsed = _parsed(url, source)
        self._shown = str(parsed.copy_with(userinfo=b""))
        self._source = source
        self._clock = clock
        self._query = {"format": "serialized"} if serialized else {}
        self._client = httpx2.Client(
            base_url=self._shown,
            auth=(parsed.username, parsed.password) if parsed.userinfo else None,
            headers={"Accept": _ACCEPT},
            timeout=_TIMEOUT_S,
        )
        self._known: dict[str, Schema] = {}
        self._unknown: dict[str, tuple[Instant, str]] = {}

    def schema(self, schema_id: int) -> Schema:
        """The schema of an id.

        Raises:
            UnknownSchemaError: the registry has none of that id.
            SourceError: the registry does not answer, or refuses to.
        """
        return self._kept(f"/schemas/ids/{schema_id}", f"schema {schema_id}", {})

    def referenced(self, reference: Reference) -> Schema:
        """The schema a reference names; also one deleted since, which records may still need.

        Raises:
            UnknownSchemaError: the registry has none of that subject and version.
            SourceError: the registry does not answer, or refuses to.
        """
        path = f"/subjects/{quote(reference.subject, safe='')}/versions/{reference.version}"
        what = f"version {reference.version} of subject {reference.subject!r}"
        return self._kept(path, what, {"deleted": "true"})

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def _kept(self, path: str, what: str, query: Mapping[str, str]) -> Schema:
        if path in self._known:
            return self._known[path]
        asked_at, message = self._unknown.get(path, (None, ""))
        if asked_at is not None and self._clock.now() < asked_at + _UNKNOWN_KEPT_US:
            raise UnknownSchemaError(message)
        try:
            self._known[path] = self._asked(path, what, {**self._query, **query})
        except UnknownSchemaError as error:
            self._unknown[path] = (self._clock.now(), str(error))
            raise
        return self._known[path]

    def _asked(self, path: str, what: str, query: Mapping[str, str]) -> Schema:
        try:
            response = self._get(path, query)
        except httpx2.HTTPStatusError as error:
            raise self._failure(f"answers {error.response.status_code} when asked for {what}") from error
        except httpx2.HTTPError as error:
            raise self._failure(f"does not answer when asked for {what}: {error}") from error
        body = _json(response)
        if response.status_code == httpx2.codes.NOT_FOUND and body.get("error_code") in _NOT_FOUND_CODES:
            raise UnknownSchemaError(f"the schema registry at {self._shown} does not know {what}")
        if response.status_code != httpx2.codes.OK or not isinstance(body.get("schema"), str):
            raise self._failure(f"answers {response.status_code} and no schema when asked for {what}")
        return _read(body)

    @stamina.retry(on=(httpx2.TransportError, httpx2.HTTPStatusError), attempts=_ATTEMPTS, wait_initial=0.1, wait_max=1)
    def _get(self, path: str, query: Mapping[str, str]) -> httpx2.Response:
        response = self._client.get(path, params=dict(query))
        if response.status_code == httpx2.codes.TOO_MANY_REQUESTS or response.is_server_error:
            response.raise_for_status()
        return response

    def _failure(self, what: str) -> SourceError:
        hint = "check schema_registry_url, and the user and password in it"
        return SourceError(f"{self._source}: the schema registry at {self._shown} {what}; {hint}")


def _parsed(url: str, source: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        # Not shown: it may hold a password.
        raise SourceError(
            f"{source}: schema_registry_url is not of the form https://[user:password@]host[:port][/path]"
        )
    return parsed


def _json(response: httpx2.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, Mapping) else {}


def _read(body: Mapping[str, Any]) -> Schema:
    references = tuple(
        Reference(str(each["name"]), str(each["subject"]), int(each["version"]))
        for each in body.get("references") or ()
    )
    # The registry leaves the type out where it is Avro.
    return Schema(str(body.get("schemaType") or "AVRO"), body["schema"], references)
