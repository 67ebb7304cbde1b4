"""Who may send to Snowflake's routes, how failures of the boundary are told there, and key pairs in place of keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from functools import cache

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cluster.processes import wait_until
from featurelib.clock import HOUR, MINUTE, SECOND
from featurelib.definitions import Commit
from featurelib.stores.keys import NewKey
from featurelib.stores.owned_keys import OwnedKeys
from featurelib.stores.principals import Author, Principals
from tests.api.conftest import NOON
from tests.api.payments import Served, serving
from tests.support.patience import PATIENCE_S

INGEST, QUERY = "/api/v1/ingest", "/api/v1/query"
RECORDS = {"records": {"clickstream_events": []}}
ROWS = {
    "name": "user_transaction_features",
    "version": "v1",
    "object_type": "feature_view",
    "request_rows": [{"entity": {"user_id": "u"}}],
}
BODIES = {INGEST: RECORDS, QUERY: ROWS}
ACCOUNT = "MYORG-MYACCOUNT"


class Signer:
    """A user with a key pair, which may be registered."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        public = self.private.public_key()
        self.pem = public.public_bytes(serialization.Encoding.PEM, spki).decode()
        der = public.public_bytes(serialization.Encoding.DER, spki)
        self.fingerprint = "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode()

    def claims(self, **changed) -> dict:
        subject = f"{ACCOUNT}.{self.user}"
        now = NOON // SECOND
        made = {"iss": f"{subject}.{self.fingerprint}", "sub": subject, "iat": now, "exp": now + 59 * 60, **changed}
        return {name: value for name, value in made.items() if value is not None}

    def token(self, **changed) -> str:
        return jwt.encode(self.claims(**changed), self.private, algorithm="RS256")


@cache
def signer(user: str) -> Signer:
    """Making a key pair takes half a second."""
    return Signer(user)


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[Served]:
    """The example, a producer and a consumer with key pairs, and a service account that reads one other workspace."""
    folder = tmp_path_factory.mktemp("access")
    limits = {"max_body_bytes": 50_000}
    with serving(folder, module_redis.url, migrated, snowflake=limits) as served:
        registry, clock = served.platform.registry, served.platform.clock
        keys = OwnedKeys(registry.database, clock)
        for user, role in (("PRODUCER", "writer"), ("CONSUMER", "reader")):
            keys.register(NewKey(role=role, label=user, public_key=signer(user).pem), Author())
        Principals(registry.database, clock).create("service_account", "outsider", {}, Author())
        served.platform.keys["outsider"] = keys.create(
            NewKey(role="reader", label="outsider", principal="outsider"), Author()
        )
        served.platform.keys["slow"] = registry.create_key("writer", "slow", rate_limit=1)
        served.commit(Commit())
        version, current = registry.version(), served.platform.services.current
        assert wait_until(lambda: current.snapshot.version >= version, PATIENCE_S, 0.005)
        yield served


def post(served: Served, path: str, authorization: str | None):
    headers = {} if authorization is None else {"Authorization": authorization}
    return served.stranger.post(path, json=BODIES[path], headers=headers)


def secret(served: Served, role: str) -> str:
    return served.platform.keys[role][1]


ROLES = [
    (INGEST, "writer", 200),
    (INGEST, "admin", 200),
    (INGEST, "reader", 403),
    (QUERY, "reader", 200),
    (QUERY, "writer", 200),
]


@pytest.mark.parametrize("form", ['Snowflake Token="{}"', 'snowflake token="{}"', "Bearer {}", "bearer {}"])
@pytest.mark.parametrize(("path", "role", "status"), ROLES)
def test_a_producer_may_ingest_and_a_consumer_may_query(served, form, path, role, status):
    answer = post(served, path, form.format(secret(served, role)))
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "PERMISSION_DENIED"
        assert "writer" in answer.json()["error"]["message"]


UNKNOWN = [
    None,
    "",
    "Bearer",
    'Snowflake Token=""',
    'Snowflake Token="tk_wrong"',
    "Snowflake Token=tk_wrong",
    "Basic eA==",
]


@pytest.mark.parametrize("authorization", UNKNOWN)
@pytest.mark.parametrize("path", [INGEST, QUERY])
def test_without_a_valid_token_it_is_401_in_the_documented_body(served, path, authorization):
    answer = post(served, path, authorization)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "UNAUTHENTICATED"
    assert answer.json()["request_id"] == answer.headers["x-correlation-id"]


def test_the_token_without_its_quotes_is_refused(served):
    assert post(served, QUERY, f"Snowflake Token={secret(served, 'reader')}").status_code == 401


def test_a_token_signed_with_a_registered_key_stands_for_its_user(served):
    assert post(served, INGEST, f"Bearer {signer('PRODUCER').token()}").status_code == 200
    assert post(served, QUERY, f"Bearer {signer('CONSUMER').token()}").status_code == 200
    assert post(served, INGEST, f"Bearer {signer('CONSUMER').token()}").status_code == 403
    lower = {"sub": f"{ACCOUNT}.consumer", "iss": f"{ACCOUNT}.consumer.{signer('CONSUMER').fingerprint}"}
    assert post(served, QUERY, f"Bearer {signer('CONSUMER').token(**lower)}").status_code == 200


NOW = NOON // SECOND
MINUTES = MINUTE // SECOND
HOURS = HOUR // SECOND
TOKENS = {
    "expired": lambda: signer("CONSUMER").token(exp=NOW - 1),
    "issued over an hour ago": lambda: signer("CONSUMER").token(iat=NOW - HOURS, exp=NOW + HOURS),
    "issued in the future": lambda: signer("CONSUMER").token(iat=NOW + 2 * MINUTES, exp=NOW + HOURS),
    "without exp": lambda: signer("CONSUMER").token(exp=None),
    "without iat": lambda: signer("CONSUMER").token(iat=None),
    "exp a text": lambda: signer("CONSUMER").token(exp="soon"),
    "without iss": lambda: signer("CONSUMER").token(iss=None),
    "iss without a fingerprint": lambda: signer("CONSUMER").token(iss=f"{ACCOUNT}.CONSUMER"),
    "sub of another user": lambda: signer("CONSUMER").token(sub=f"{ACCOUNT}.PRODUCER"),
    "fingerprint of another key": lambda: signer("CONSUMER").token(
        iss=f"{ACCOUNT}.CONSUMER.{signer('PRODUCER').fingerprint}"
    ),
    "key not registered": lambda: signer("STRANGER").token(),
    "signed by another key": lambda: jwt.encode(
        signer("CONSUMER").claims(), signer("STRANGER").private, algorithm="RS256"
    ),
    "not signed": lambda: jwt.encode(signer("CONSUMER").claims(), "", algorithm="none") + "x",
    "signed with the public key as a secret": lambda: _symmetric(signer("CONSUMER")),
    "another algorithm": lambda: jwt.encode(
        signer("CONSUMER").claims(), ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"
    ),
    "no JSON": lambda: "a.b.c",
}


def _symmetric(who: Signer) -> str:
    """What a verifier takes that lets the token choose HMAC: the public key as its secret."""

    def part(value: dict) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(who.claims())
    mac = hmac.new(who.pem.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


@pytest.mark.parametrize("made", TOKENS.values(), ids=TOKENS.keys())
def test_a_token_that_does_not_hold_is_401(served, made):
    answer = post(served, QUERY, f"Bearer {made()}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHENTICATED")


def test_a_revoked_public_key_verifies_nothing(served):
    gone = signer("STRANGER")
    registry = served.platform.registry
    keys = OwnedKeys(registry.database, served.platform.clock)
    record = keys.register(NewKey(role="reader", label="STRANGER", public_key=gone.pem), Author())
    assert wait_until(lambda: post(served, QUERY, f"Bearer {gone.token()}").status_code == 200, PATIENCE_S)
    registry.revoke_key(record.fingerprint)
    assert wait_until(lambda: post(served, QUERY, f"Bearer {gone.token()}").status_code == 401, PATIENCE_S)


def test_a_group_is_read_by_who_may_read_its_workspace(served):
    group = {**ROWS, "name": "fraud_detection_v3", "version": "v2", "object_type": "feature_group"}
    for role, status in (("outsider", 403), ("reader", 400)):  # 400: the merchant is missing
        token = {"Authorization": f'Snowflake Token="{secret(served, role)}"'}
        assert served.stranger.post(QUERY, json=group, headers=token).status_code == status


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", [INGEST, QUERY])
def test_another_method_is_405_in_the_documented_body(served, path, method):
    answer = served.owner.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "METHOD_NOT_ALLOWED"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonl"])
@pytest.mark.parametrize("path", [INGEST, QUERY])
def test_the_content_type_must_be_json(served, path, kind):
    body = json.dumps(BODIES[path])
    answer = served.owner.post(path, content=body, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_ARGUMENT")
    assert "Content-Type" in answer.json()["error"]["message"]
    charset = served.owner.post(path, content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert charset.status_code == 200


@pytest.mark.parametrize("path", [INGEST, QUERY])
@pytest.mark.parametrize("size", [60_000, 300_000], ids=["over its own limit", "over that of all routes"])
def test_a_body_over_a_limit_is_413(served, path, size):
    answer = served.owner.post(path, content=b" " * size)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "REQUEST_TOO_LARGE")


def test_a_token_that_sends_too_often_is_429_and_told_when_it_may_again(served):
    answers = [post(served, INGEST, f'Snowflake Token="{secret(served, "slow")}"') for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["error"]["code"] == "RESOURCE_EXHAUSTED"
    assert int(answers[1].headers["retry-after"]) >= 1


GIVEN = {"its own form": ("req_abc123", True), "too long": ("x" * 129, False), "blank": ("a b", False)}


@pytest.mark.parametrize(("given", "kept"), GIVEN.values(), ids=GIVEN.keys())
def test_the_request_id_is_echoed_or_made(served, given, kept):
    told = served.owner.post(QUERY, json=ROWS, headers={"X-Request-ID": given}).json()["request_id"]
    assert (told == given) == kept
    assert told
