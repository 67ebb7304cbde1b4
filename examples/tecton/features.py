"""A feature service for payments, read by Tecton's clients: ``fraud_detection_feature_service`` in workspace ``prod``.

``thyme commit examples/tecton/features.py`` commits it. ``python examples/tecton/features.py`` commits it too, sends
payments of a few users that happened within the last days, and waits until they can be read.
"""

import time
from datetime import datetime, timedelta
from typing import Any, Optional

from featurelib import (
    Avg,
    Count,
    FeatureService,
    Last,
    LastK,
    Sum,
    ThymeClient,
    dataset,
    extractor,
    extractor_inputs,
    extractor_outputs,
    feature,
    featureset,
    field,
    inputs,
    pipeline,
)
from featurelib.clock import SystemClock, to_datetime
from featurelib.compile import compile_module
from featurelib.errors import NotFound


@dataset(version=1, event_id="payment")
class Payment:
    payment: str = field(key=True)
    user_id: str = field()
    merchant: str = field()
    amount: float = field()
    at: datetime = field(timestamp=True)


@dataset(index=True, version=1)
class User:
    user_id: str = field(key=True)
    country: str = field()
    is_verified: bool = field()
    member_since: datetime = field()
    at: datetime = field(timestamp=True)


@dataset(index=True, version=1)
class PaymentsOfUser:
    user_id: str = field(key=True)
    payments_24h: int = field()
    spent_7d: float = field()
    mean_30d: float = field()
    last_payment_at: datetime = field()
    last_merchants: list[str] = field()
    last_amounts: list[float] = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Payment)
    def payments_by_user(cls, payments):
        return payments.groupby("user_id").aggregate(
            payments_24h=Count(window="24h"),
            spent_7d=Sum(of="amount", window="7d"),
            mean_30d=Avg(of="amount", window="30d"),
            last_payment_at=Last(of="at", window="30d"),
            last_merchants=LastK(of="merchant", window="30d", k=3),
            last_amounts=LastK(of="amount", window="30d", k=3),
        )


@featureset(entity_type="user", tags={"team": "payments"})
class UserPayments:
    user_id: str = feature()
    payments_24h: int = feature(ref=PaymentsOfUser.payments_24h, description="payments of the last 24 hours")
    spent_7d: float = feature(ref=PaymentsOfUser.spent_7d)
    mean_30d: float = feature(ref=PaymentsOfUser.mean_30d)
    last_payment_at: datetime = feature(ref=PaymentsOfUser.last_payment_at)
    last_merchants: list[str] = feature(ref=PaymentsOfUser.last_merchants)
    last_amounts: list[float] = feature(ref=PaymentsOfUser.last_amounts)


@featureset(entity_type="user")
class UserProfile:
    user_id: str = feature()
    country: str = feature(ref=User.country)
    is_verified: bool = feature(ref=User.is_verified)
    member_since: datetime = feature(ref=User.member_since)


@featureset(entity_type="user")
class PaymentRisk:
    user_id: str = feature()
    # Clients may send null, NaN or an infinity: all three are no amount.
    amount: Optional[float] = feature(request=True)
    times_the_mean: float = feature()
    is_unusual: bool = feature()

    @extractor
    @extractor_inputs("amount", UserPayments.mean_30d)
    @extractor_outputs("times_the_mean", "is_unusual")
    def compare(cls, ts, amount, mean_30d):
        times = amount / mean_30d if amount is not None and mean_30d else None
        return {"times_the_mean": times, "is_unusual": times is None or times > 3}


fraud_detection = FeatureService(
    "fraud_detection_feature_service",
    [UserPayments, UserProfile.slice("country", "is_verified", "member_since"), PaymentRisk],
    workspace="prod",
    join_keys={"user_id": str},
    request_context={"amount": float},
    description="what a payment is judged by",
)


def users(now: datetime) -> list[dict[str, Any]]:
    """Three users; nobody has heard of a fourth."""
    rows = [("u1", "NO", True), ("u2", "SE", False), ("u3", "DK", True)]
    since = {"member_since": now - timedelta(days=400), "at": now - timedelta(days=30)}
    return [{"user_id": user, "country": country, "is_verified": known, **since} for user, country, known in rows]


def payments(now: datetime) -> list[dict[str, Any]]:
    """``u1`` paid today, ``u2`` last week; ``u3`` never did."""
    rows = [("p1", "u1", "bakery", 4.5, 1), ("p2", "u1", "books", 30.0, 5), ("p3", "u1", "bakery", 5.5, 50)]
    rows += [("p4", "u2", "trains", 120.0, 24 * 8)]
    return [
        # Sent again on the same day they count once: `payment` identifies them.
        {"payment": f"{now:%F}-{name}", "user_id": user, "merchant": merchant, "amount": amount, "at": at}
        for name, user, merchant, amount, hours in rows
        for at in [now - timedelta(hours=hours)]
    ]


def is_served(client: ThymeClient) -> bool:
    """Whether the payments of ``u1`` are counted; a replica knows a new featureset within a second."""
    try:
        return bool(client.query("UserPayments", "u1")["payments_24h"][0])
    except NotFound:
        return False


def main() -> None:
    """Commit this file, load the entities, and wait until they are served."""
    now = to_datetime(SystemClock().now())
    with ThymeClient() as client:
        client.commit(compile_module(__file__))
        client.log("User", users(now))
        client.log("Payment", payments(now))
        started = time.monotonic()
        while not is_served(client):
            if time.monotonic() - started > 60:
                raise SystemExit("u1 is not served after a minute: see `thyme status` and `thyme logs`")
            time.sleep(0.2)
    print("fraud_detection_feature_service is served in workspace prod; its users are u1, u2 and u3")


if __name__ == "__main__":
    main()
