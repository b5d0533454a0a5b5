"""What gateways say to each other arrives whole, and only from each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway.quota import Grant, Limits, Report
from octavo_gateway.quota_wire import (
    MAX_AGE_S,
    BadMessage,
    check_signature,
    decode_grants,
    decode_question,
    encode_grants,
    encode_question,
    sign,
)
from octavo_gateway.quotas import Entry

SECRET = b"s" * 32
counts = st.integers(0, 10**12)
reports = st.builds(
    Report,
    ages=st.lists(st.tuples(st.floats(0, 61), counts), max_size=5).map(tuple),
    day=st.integers(0, 10**5),
    day_tokens=counts,
    need=counts,
    want=counts,
)
entries = st.lists(
    st.builds(
        Entry, account=st.text(max_size=30), limits=st.builds(Limits, per_minute=counts, per_day=counts), report=reports
    ),
    max_size=4,
)
grants = st.lists(
    st.builds(
        Grant,
        tokens=counts,
        minute_left=st.none() | counts,
        day_left=st.none() | counts,
        retry_after_s=st.integers(0, 100),
    ),
    max_size=4,
)


@given(st.text(max_size=10), entries, grants)
def test_a_question_and_its_answer_arrive_as_they_were_meant(
    gateway: str, asked: list[Entry], granted: list[Grant]
) -> None:
    assert decode_question(encode_question(gateway, asked)) == (gateway, asked)
    assert decode_grants(encode_grants(granted)) == granted


@given(st.binary(max_size=100))
def test_any_bytes_are_a_message_or_a_bad_one(raw: bytes) -> None:
    for decode in (decode_question, decode_grants):
        try:
            decode(raw)
        except BadMessage:
            continue


def test_a_signature_holds_for_its_message_its_secret_and_its_time() -> None:
    body = b"question"
    signature = sign(SECRET, body, 1000.0)

    check_signature(SECRET, body, signature, 1000.0 + MAX_AGE_S)
    for secret, said, shown, now_s in (
        (SECRET, b"other", signature, 1000.0),
        (b"t" * 32, body, signature, 1000.0),
        (SECRET, body, signature, 1001.0 + MAX_AGE_S),
        (SECRET, body, signature, 999.0 - MAX_AGE_S),
        (SECRET, body, "1001" + signature[4:], 1000.0),
        (SECRET, body, "", 1000.0),
        (SECRET, body, "é.x", 1000.0),
        (b"", body, sign(b"", body, 1000.0), 1000.0),
    ):
        with pytest.raises(BadMessage):
            check_signature(secret, said, shown, now_s)
