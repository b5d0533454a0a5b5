"""`spec.rollout`: how a changed spec reaches the replicas, by the same rules as the CRD's."""

from __future__ import annotations

from octavo_operator.api.reader import ObjectReader
from octavo_operator.api.types import GateQuery, GoldenPrompt, Rollout, RolloutGate, RolloutWhen

STRATEGIES = ("Auto", "Surge", "HoldAndSwap", "Recreate")
CRON = r"[^\s]+( [^\s]+){4}"
DECIMAL = r"-?[0-9]{1,12}(\.[0-9]{1,6})?"
RATIO = r"(0\.[0-9]{0,3}[1-9]|0\.[1-9][0-9]{0,3}|[1-9](\.[0-9]{1,3})?)?"
URL = r"https?://[^\s/@?#]+(/[^\s?#]*)?"
MAX_PROMPTS = 16


def parse_rollout(raw: ObjectReader) -> Rollout:
    result = Rollout(
        strategy=raw.choice("strategy", STRATEGIES, default="Auto"),
        max_hold_s=raw.duration_s("maxHold", default=300),
        when=_when(raw.child("when")),
        gate=_gate(raw.child("gate")),
        operator_upgrade=raw.choice("operatorUpgrade", ("Keep", "Roll"), default="Keep"),
    )
    raw.finish()
    return result


def _when(raw: ObjectReader) -> RolloutWhen:
    result = RolloutWhen(
        policy=raw.choice("policy", ("Immediately", "Idle", "Window"), default="Immediately"),
        cron=raw.string("cron", pattern=CRON, remedy='must have five fields, such as "0 2 * * 1-5"'),
        duration_s=raw.duration_s("duration", default=0),
        time_zone=raw.string("timeZone"),
    )
    if result.policy == "Window":
        for name, value in (("cron", result.cron), ("duration", result.duration_s)):
            if not value:
                raw.complain(name, "is required where policy is Window")
    else:
        for name in ("cron", "duration", "timeZone"):
            if raw.has(name):
                raw.complain(name, f"is for policy Window, and policy is {result.policy}")
    raw.finish()
    return result


def _gate(raw: ObjectReader) -> RolloutGate:
    result = RolloutGate(
        prompts=_prompts(raw),
        min_throughput_ratio=raw.string(
            "minThroughputRatio", pattern=RATIO, remedy='must be a string greater than 0 and below 10, such as "0.9"'
        ),
        query=_query(raw.child("query")) if raw.has("query") else raw.take("query"),
        timeout_s=raw.duration_s("timeout", default=300),
    )
    raw.finish()
    return result


def _prompts(raw: ObjectReader) -> tuple[GoldenPrompt, ...]:
    items = raw.take("prompts")
    if items is None:
        return ()
    if not isinstance(items, list) or len(items) > MAX_PROMPTS:
        raw.complain("prompts", f"must be a list of at most {MAX_PROMPTS} objects")
        return ()
    return tuple(
        _prompt(ObjectReader(item, f"{raw.path}.prompts[{number}]", raw.problems)) for number, item in enumerate(items)
    )


def _prompt(raw: ObjectReader) -> GoldenPrompt:
    result = GoldenPrompt(
        prompt=raw.string("prompt"),
        expect=raw.string("expect"),
        max_tokens=raw.integer("maxTokens", low=1, high=4096, default=64),
    )
    for name, value in (("prompt", result.prompt), ("expect", result.expect)):
        if not value:
            raw.complain(name, "is required")
    raw.finish()
    return result


def _query(raw: ObjectReader) -> GateQuery:
    result = GateQuery(
        prometheus=raw.string("prometheus", pattern=URL, remedy="must be like http://prometheus.monitoring:9090"),
        expr=raw.string("expr"),
        maximum=raw.string("max", pattern=DECIMAL, remedy='must be a decimal string, such as "0.05"'),
    )
    for name, value in (("prometheus", result.prometheus), ("expr", result.expr), ("max", result.maximum)):
        if not value:
            raw.complain(name, "is required")
    raw.finish()
    return result
