"""What the documented requests of Snowflake's online feature store ask for: stream sources, feature views, a group.

Commit it with ``thyme commit examples/snowflake/features.py``, or run it, which does the same. Its names are those of
the API's documentation, not spelt as Python spells those of classes; ``docs/snowflake.md`` says what becomes of them.
"""
# ruff: noqa: N801 - the names of the API's documentation

from datetime import datetime
from typing import Optional

from featurelib import (
    Avg,
    Count,
    FeatureService,
    Slice,
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
from featurelib.compile import compile_module


# A record that is sent again, of the same key and instant, replaces the one before.
@dataset(version=1, upsert=True, description="Stream source: card payments as they happen.")
class transactions_stream:
    user_id: str = field(key=True)
    amount: float = field()
    merchant_category: Optional[str] = field()
    timestamp: datetime = field(timestamp=True)


@dataset(version=1, upsert=True, description="Stream source: pages that visitors look at.")
class clickstream_events:
    session_id: str = field(key=True)
    page: str = field()
    duration_ms: int = field()
    timestamp: datetime = field(timestamp=True)


@dataset(version=1, upsert=True, description="Stream source: what merchants were reported for; 1.0 was fraud.")
class merchant_reports:
    merchant_id: str = field(key=True)
    fraud: float = field(min=0.0, max=1.0)
    timestamp: datetime = field(timestamp=True)


@dataset(index=True, version=1)
class user_transactions:
    user_id: str = field(key=True)
    amount_sum_1h: float = field()
    txn_count_24h: int = field()
    avg_amount_7d: float = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(transactions_stream)
    def by_user(cls, transactions):
        return transactions.groupby("user_id").aggregate(
            amount_sum_1h=Sum(of="amount", window="1h"),
            txn_count_24h=Count(window="24h"),
            avg_amount_7d=Avg(of="amount", window="7d"),
        )


@dataset(index=True, version=1)
class merchant_risk:
    merchant_id: str = field(key=True)
    merchant_fraud_rate_7d: float = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(merchant_reports)
    def by_merchant(cls, reports):
        return reports.groupby("merchant_id").aggregate(merchant_fraud_rate_7d=Avg(of="fraud", window="7d"))


@featureset(description="Feature view: what a user spent.")
class user_transaction_features:
    user_id: str = feature()
    amount_sum_1h: float = feature(ref=user_transactions.amount_sum_1h)
    txn_count_24h: int = feature(ref=user_transactions.txn_count_24h)
    avg_amount_7d: float = feature(ref=user_transactions.avg_amount_7d)


@featureset(description="Feature view: how often a merchant was reported.")
class merchant_risk_features:
    merchant_id: str = feature()
    merchant_fraud_rate_7d: float = feature(ref=merchant_risk.merchant_fraud_rate_7d)


@featureset(description="Real-time feature view: this payment beside what is usual.")
class realtime_risk_features:
    user_id: str = feature()
    current_amount: float = feature(request=True)
    transaction_time: datetime = feature(request=True)
    risk_score: float = feature()

    @extractor
    @extractor_inputs("current_amount", user_transaction_features.avg_amount_7d)
    @extractor_outputs("risk_score")
    def risk(cls, ts, amount, usual):
        return amount / (amount + usual) if usual else 0.5


fraud_detection = FeatureService(
    "fraud_detection_v3",
    [
        Slice(user_transaction_features, "amount_sum_1h", "txn_count_24h"),
        merchant_risk_features,
        realtime_risk_features,
    ],
    version=2,
    description="Feature group: everything one payment is judged by.",
)


def main() -> None:
    """Commit this file."""
    with ThymeClient() as client:
        client.commit(compile_module(__file__))
    print("transactions_stream takes records; user_transaction_features v1 and fraud_detection_v3 v2 are served")


if __name__ == "__main__":
    main()
