"""Who gets in: keys from Secrets, open models, and what each refusal says."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway import keys
from octavo_gateway.endpoints import Access, Model
from octavo_gateway.errors import GatewayError
from octavo_gateway.keys import Gate, Key, Keyring, bearer_token
from octavo_gateway.stored_responses import digest
from octavo_testing.gateway import CHAT, a_gateway, a_model, an_upstream, until

SECRETS = {
    "default/team-a": {"alice": b"sk-alice", "bob": b"sk-bob\n"},
    "default/team-b": {"carol": b"sk-carol"},
}


def a_keyring(secrets: Mapping[str, Mapping[str, bytes]] = SECRETS) -> Keyring:
    keyring = Keyring(b"pepper")
    for secret, entries in secrets.items():
        keyring.put(secret, entries)
    return keyring


def guarded(name: str = "m", *replicas: Any, keys: tuple[str, ...] = ("team-a",), **fields: Any) -> Model:
    return a_model(name, *replicas, access=Access(keys_from=keys), **fields)


def refusal(gate: Gate, model: Model, authorization: str) -> tuple[int, str | None]:
    with pytest.raises(GatewayError) as refused:
        gate.check(model, authorization)
    return refused.value.status, refused.value.code


def test_an_open_model_takes_everybody() -> None:
    assert Gate(a_keyring()).check(a_model("m"), "Bearer none") is None


@pytest.mark.parametrize(("token", "name"), [("sk-alice", "alice"), ("sk-bob", "bob")])
def test_a_key_is_known_by_the_name_of_its_entry_and_white_space_around_it_is_no_part_of_it(
    token: str, name: str
) -> None:
    key = Gate(a_keyring()).check(guarded(), f"Bearer {token}")

    assert str(key) == f"default/team-a/{name}"


def test_one_model_may_take_keys_of_several_secrets() -> None:
    gate, model = Gate(a_keyring()), guarded(keys=("team-a", "team-b"))

    assert [str(gate.check(model, f"Bearer {token}")) for token in ("sk-alice", "sk-carol")] == [
        "default/team-a/alice",
        "default/team-b/carol",
    ]


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("", (401, "invalid_api_key")),
        ("Bearer ", (401, "invalid_api_key")),
        ("Basic sk-alice", (401, "invalid_api_key")),
        ("Bearer sk-nobody", (401, "invalid_api_key")),
        ("Bearer sk-carol", (403, "model_not_allowed")),
    ],
)
def test_no_key_or_a_wrong_one_is_401_and_one_for_another_model_403(
    authorization: str, expected: tuple[int, str]
) -> None:
    assert refusal(Gate(a_keyring()), guarded(), authorization) == expected


def test_while_a_secret_cannot_be_read_a_key_that_may_be_in_it_is_not_called_wrong() -> None:
    keyring = a_keyring()
    keyring.forget("default/team-a")

    assert refusal(Gate(keyring), guarded(), "Bearer sk-alice") == (503, "keys_unreadable")
    assert refusal(Gate(keyring), guarded(), "") == (401, "invalid_api_key")


def test_every_key_of_a_secret_is_one_however_many_there_are() -> None:
    """The API server takes more than thirty thousand short ones."""
    entries = {f"key-{number}": b"sk-%d" % number for number in range(30_000)}
    keyring = a_keyring({"default/team-a": entries})

    assert all(keyring.knows(value.decode()) for value in list(entries.values())[::997])
    assert keyring.knows("sk-29999")


def test_a_secret_that_did_not_change_is_not_digested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring, digested = a_keyring(), []
    digest_of = keyring._digest
    monkeypatch.setattr(keyring, "_digest", lambda value: digested.append(value) or digest_of(value))

    keyring.put("default/team-a", dict(SECRETS["default/team-a"]))
    assert digested == []

    keyring.forget("default/team-a")
    keyring.put("default/team-a", {"alice": b"sk-alice"})
    keyring.put("default/team-a", {"alice": b"sk-other"})
    assert digested == [b"sk-alice", b"sk-other"]


@pytest.mark.parametrize("value", [b"", b" \n", b"sk-one\nsk-two\n", b"sk\0", b"sk\r\nX: y"])
def test_an_entry_that_can_be_no_key_is_named_and_the_others_are_keys(value: bytes) -> None:
    keyring = Keyring(b"pepper")

    assert keyring.put("default/team-a", {"odd": value, "alice": b"sk-alice"}) == ("odd",)
    assert keyring.put("default/team-a", {"odd": value, "alice": b"sk-alice"}) == ()
    assert (keyring.knows("sk-alice"), keyring.knows(value.decode().strip())) == (True, False)


def test_a_secret_read_anew_replaces_its_old_keys() -> None:
    keyring = a_keyring()
    keyring.put("default/team-a", {"alice": b"sk-new"})

    assert refusal(Gate(keyring), guarded(), "Bearer sk-alice") == (401, "invalid_api_key")
    assert Gate(keyring).check(guarded(), "Bearer sk-new") is not None


def test_secrets_that_no_model_names_are_forgotten() -> None:
    keyring = a_keyring()
    keyring.keep_only(["default/team-b"])

    assert not keyring.knows("sk-alice")
    assert keyring.knows("sk-carol")


def test_an_empty_entry_is_no_key() -> None:
    keyring = a_keyring({"default/team-a": {"empty": b"", "blank": b" \n"}})

    assert refusal(Gate(keyring), guarded(), "Bearer ") == (401, "invalid_api_key")
    assert not keyring.knows("")


def test_keys_are_kept_as_digests_alone() -> None:
    assert b"sk-alice" not in repr(vars(a_keyring())).encode()


def steps_of(act: Callable[[], object]) -> int:
    """Lines of the module of keys that run, those of its generators too."""
    steps = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != keys.__file__:
            return None
        steps += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return steps


def test_finding_a_key_takes_the_same_steps_whichever_it_is_how_many_there_are_and_if_there_is_none() -> None:
    many = {
        f"ns/s{secret}": {f"k{number}": f"sk-{secret}-{number}".encode() for number in range(200)}
        for secret in range(3)
    }
    few = {secret: dict(list(entries.items())[:1]) for secret, entries in many.items()}
    first, last, near, far = "sk-0-0", "sk-2-199", "sk-0-00", "x"

    steps = {
        steps_of(partial(a_keyring(secrets).find, token, many))
        for secrets in (many, few)
        for token in (first, last, near, far)
    }

    assert len(steps) == 1
    assert steps.pop() > 0


def test_every_secret_is_looked_into_wherever_the_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a token is digested once for all of them."""
    looked: list[bytes] = []
    digested: list[bytes] = []

    class Watched(dict[bytes, Key]):
        def get(self, digest: bytes, default: Any = None) -> Any:
            looked.append(digest)
            return super().get(digest, default)

    ring = a_keyring({f"ns/{name}": {"key": f"sk-{name}".encode()} for name in "abc"})
    ring._digests = {secret: Watched(digests) for secret, digests in ring._digests.items()}
    digest = hmac.digest

    def watched_digest(secret: bytes, value: bytes, kind: Any) -> bytes:
        digested.append(value)
        return digest(secret, value, kind)

    monkeypatch.setattr(hmac, "digest", watched_digest)
    secrets = ["ns/a", "ns/b", "ns/c"]

    found = [ring.find(token, secrets) for token in ("sk-a", "sk-c", "sk-none")]

    assert [key and key.secret for key in found] == ["ns/a", "ns/c", None]
    assert digested == [b"sk-a", b"sk-c", b"sk-none"]
    assert looked == [digest(b"pepper", token, "sha256") for token in digested for _ in secrets]


def test_a_digest_is_worth_nothing_without_the_secret_of_its_process() -> None:
    """So that nobody can choose tokens whose digests share a beginning with that of a key."""
    rings = [Keyring(pepper) for pepper in (b"one", b"two")]
    for ring in rings:
        ring.put("ns/a", {"key": b"sk"})

    digests = [next(iter(ring._digests["ns/a"])) for ring in rings]

    assert len({*digests, hashlib.sha256(b"sk").digest()}) == 3
    assert [len(digest) for digest in digests] == [32, 32]


@given(st.text(), st.binary(max_size=40))
def test_any_token_is_found_exactly_if_its_bytes_are_a_key(token: str, value: bytes) -> None:
    keyring = a_keyring({"default/team-a": {"x": value}})
    stripped = value.strip()

    is_key = bool(stripped) and token.encode("utf-8", "surrogateescape") == stripped if _encodes(token) else False
    if _encodes(token):
        assert keyring.knows(token) == is_key


def _encodes(token: str) -> bool:
    try:
        token.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("header", "token"), [("Bearer k", "k"), ("bearer  k ", "k"), ("k", ""), ("Basic k", ""), ("", ""), ("Bearer", "")]
)
def test_the_token_of_a_header(header: str, token: str) -> None:
    assert bearer_token(header) == token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_the_key_opens_its_model_and_goes_no_further_than_the_gateway() -> None:
    async with (
        an_upstream() as upstream,
        a_gateway(guarded("m", upstream.replica()), a_model("open", upstream.replica()), secrets=SECRETS) as bench,
    ):
        await until(lambda: bench.gateway.is_ready)
        with_key = await bench.send("POST", CHAT, json={"model": "m"}, headers=bearer("sk-alice"))
        without = await bench.send("POST", CHAT, json={"model": "m"})
        foreign = await bench.send("POST", CHAT, json={"model": "default/m"}, headers=bearer("sk-nobody"))
        to_open = await bench.send("POST", CHAT, json={"model": "open"}, headers=bearer("whatever"))

    assert [answer.status for answer in (with_key, without, foreign, to_open)] == [200, 401, 401, 200]
    assert (without.error["code"], without.headers["WWW-Authenticate"]) == ("invalid_api_key", "Bearer")
    assert foreign.error["type"] == "invalid_request_error"
    assert [headers.get("Authorization") for headers in upstream.headers] == [None, "Bearer whatever"]


def test_what_a_key_may_see_is_looked_up_once_for_any_number_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(a_keyring())
    models = [guarded("a"), guarded("b", keys=("team-b",)), guarded("ab", keys=("team-a", "team-b")), a_model("open")]
    digested = 0
    digest = hmac.digest

    def counted(*given: Any) -> bytes:
        nonlocal digested
        digested += 1
        return digest(*given)

    monkeypatch.setattr(hmac, "digest", counted)

    viewers = {token: gate.viewer(f"Bearer {token}") for token in ("sk-alice", "sk-carol", "sk-none", "")}
    shown = {token: [model.shown_name for model in models if sees(model)] for token, sees in viewers.items()}

    assert shown == {
        "sk-alice": ["a", "ab", "open"],
        "sk-carol": ["b", "ab", "open"],
        "sk-none": ["open"],
        "": ["open"],
    }
    assert digested == 3


async def test_the_list_shows_what_the_key_may_use() -> None:
    models = guarded("a"), guarded("b", keys=("team-b",)), a_model("open")
    async with a_gateway(*models, secrets=SECRETS) as bench:
        await until(lambda: bench.gateway.is_ready)

        async def listed(token: str) -> list[str]:
            answer = await bench.send("GET", "/v1/models", headers=bearer(token))
            return [model["id"] for model in answer.json["data"]]

        shown = {token: await listed(token) for token in ("sk-alice", "sk-carol", "none")}
        forbidden = await bench.send("GET", "/v1/models/b", headers=bearer("sk-alice"))
        unknown = await bench.send("POST", CHAT, json={"model": "x"}, headers=bearer("sk-alice"))

    assert shown == {"sk-alice": ["a", "open"], "sk-carol": ["b", "open"], "none": ["open"]}
    assert (forbidden.status, forbidden.error["code"]) == (403, "model_not_allowed")
    assert unknown.status == 404
    assert "'a'" in unknown.error["message"]
    assert "'b'" not in unknown.error["message"]


async def test_where_every_model_needs_a_key_a_stranger_is_refused_before_the_body_is_read() -> None:
    async with an_upstream() as upstream, a_gateway(guarded("m", upstream.replica()), secrets=SECRETS) as bench:
        await until(lambda: bench.gateway.is_ready)
        answers = [
            await bench.send("POST", CHAT, data=b"no JSON at all"),
            await bench.send("POST", CHAT, data=b"no JSON at all", headers=bearer("sk-nobody")),
            await bench.send("GET", "/v1/models"),
        ]
        known = await bench.send("POST", CHAT, data=b"no JSON at all", headers=bearer("sk-alice"))

    assert [answer.status for answer in answers] == [401, 401, 401]
    assert known.status == 400


async def test_what_is_stored_is_behind_the_models_keys_too() -> None:
    async with (
        an_upstream() as upstream,
        a_gateway(guarded("m", upstream.replica("m-1")), a_model("open"), secrets=SECRETS) as bench,
    ):
        await until(lambda: bench.gateway.is_ready)
        path = f"/v1/responses/resp_1_{digest('default/m')}{digest('m-1')}"
        answers = [await bench.send("GET", path, headers=bearer(token)) for token in ("sk-nobody", "sk-alice")]

    assert [answer.status for answer in answers] == [401, 200]
    assert json.loads(answers[0].body)["error"]["code"] == "invalid_api_key"
