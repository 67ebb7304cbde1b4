"""Sources with the secrets they name: put in when they are read, and looked at again now and then."""

from __future__ import annotations

from featurelib.clock import SECOND, Clock, Duration, Instant
from featurelib.definitions import SourceDef
from featurelib.errors import CorruptState, NotFound, SourceError
from featurelib.secrets import SecretRef
from featurelib.stores.secret_values import Place, SecretReader


def places_of(source: SourceDef) -> dict[str, Place]:
    """By setting, where the platform keeps the secret that a source names."""
    settings = source.connector.config.items()
    found = {name: value.place for name, value in settings if isinstance(value, SecretRef)}
    return {name: Place(*place) for name, place in found.items() if place is not None}


def with_secrets(source: SourceDef, secrets: SecretReader) -> SourceDef:
    """The source with its secrets in place of their names: for a connector, and for nobody to keep or show.

    Raises:
        SourceError: one of them is not there, or cannot be read.
        StoreUnavailable: the registry does not answer.
    """
    places = places_of(source)
    if not places:
        return source
    values = {name: _read(source, name, place, secrets) for name, place in places.items()}
    connector = source.connector.model_copy(update={"config": {**source.connector.config, **values}})
    return source.model_copy(update={"connector": connector})


class SourceSecrets:
    """The secrets of one source, as they change.

    Args:
        source: as it was committed.
        secrets: where they are kept.
        every_s: how long what was read is taken to be current.
        clock: the wall clock. One that jumps back makes a look come sooner.
    """

    def __init__(self, source: SourceDef, secrets: SecretReader, every_s: int, clock: Clock) -> None:
        self._source = source
        self._secrets = secrets
        self._every_us = every_s * SECOND
        self._clock = clock
        self._names_any = bool(places_of(source))
        self._looked_at: Instant | None = None

    def look(self, *, at_once: bool = False) -> SourceDef | None:
        """The source with its secrets as they are now; ``None`` when it is not time to look, unless ``at_once``.

        Raises:
            SourceError: a secret is not there, or cannot be read.
            StoreUnavailable: the registry does not answer.
        """
        now = self._clock.now()
        if self._looked_at is not None and not (self._names_any and (at_once or self._is_old(now - self._looked_at))):
            return None
        self._looked_at = now
        return with_secrets(self._source, self._secrets)

    def _is_old(self, age_us: Duration) -> bool:
        return age_us >= self._every_us or age_us < 0


def _read(source: SourceDef, name: str, place: Place, secrets: SecretReader) -> SecretRef:
    what = f"{source.connector.type} source of {source.dataset}: {name}"
    try:
        return SecretRef(kind="literal", value=secrets.get(place))
    except NotFound:
        message = f"{what} is the secret {place}, which does not exist; `thyme secrets put {place.scope} {place.key}`"
        raise SourceError(message) from None
    except CorruptState as error:
        raise SourceError(f"{what} cannot be read: {error}") from None
