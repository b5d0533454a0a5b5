"""Which Secret of keys cannot be read, and the commands that cure it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from octavo_operator.errors import ClusterError
from octavo_operator.key_secrets import FRESH_S, KeySecrets

READERS = ("sys:octavo-gateway", "sys:octavo-operator")


@dataclass
class PlayedKube:
    answers: dict[str, bool | ClusterError]
    asked: list[str] = field(default_factory=list)

    async def is_readable(self, path: str) -> bool:
        self.asked.append(path)
        answer = self.answers[path.rpartition("/")[2]]
        if isinstance(answer, ClusterError):
            raise answer
        return answer


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def a_resource(*secrets: str, namespace: str = "team") -> dict[str, Any]:
    access = {"access": {"keysFrom": [{"secretRef": {"name": name}} for name in secrets]}} if secrets else {}
    return {"metadata": {"namespace": namespace, "name": "m"}, "spec": {"model": "hf://a/b", **access}}


FORBIDDEN = ClusterError(403, "Forbidden", "secrets is forbidden")


async def test_a_model_without_keys_asks_for_nothing() -> None:
    kube = PlayedKube({})

    assert await KeySecrets(kube, readers=READERS, clock=Clock()).trouble(a_resource()) == ""
    assert kube.asked == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (True, ""),
        (False, "the Secret team/keys of access.keysFrom does not exist"),
        (FORBIDDEN, "the Secret team/keys of access.keysFrom may not be read"),
        (ClusterError(0, "Unreachable", "no answer"), ""),
        (ClusterError(500, "InternalError", "etcd"), ""),
    ],
)
async def test_missing_and_forbidden_are_troubles_and_an_outage_is_none(
    answer: bool | ClusterError, words: str
) -> None:
    kube = PlayedKube({"keys": answer})

    said = await KeySecrets(kube, readers=READERS, clock=Clock()).trouble(a_resource("keys"))

    assert said.startswith(words)
    assert bool(said) == bool(words)
    assert kube.asked == ["/api/v1/namespaces/team/secrets/keys"]


async def test_the_first_secret_in_trouble_is_told() -> None:
    kube = PlayedKube({"a": True, "b": False, "c": FORBIDDEN})

    assert "team/b" in await KeySecrets(kube, readers=READERS, clock=Clock()).trouble(a_resource("a", "b", "c"))


async def test_the_cure_is_two_commands_for_both_accounts_and_this_secret_alone() -> None:
    said = await KeySecrets(PlayedKube({"keys": FORBIDDEN}), readers=READERS, clock=Clock()).trouble(a_resource("keys"))

    assert said.partition("run: ")[2] == (
        "kubectl create role octavo-keys-keys -n team --verb=get --resource=secrets --resource-name=keys && "
        "kubectl create rolebinding octavo-keys-keys -n team --role=octavo-keys-keys "
        "--serviceaccount=sys:octavo-gateway --serviceaccount=sys:octavo-operator"
    )


async def test_an_answer_stands_for_all_models_for_a_while() -> None:
    kube, clock = PlayedKube({"keys": False}), Clock()
    secrets = KeySecrets(kube, readers=READERS, clock=clock)
    await secrets.trouble(a_resource("keys"))
    kube.answers["keys"] = True

    assert await secrets.trouble(a_resource("keys")) != ""
    clock.now += FRESH_S
    assert await secrets.trouble(a_resource("keys")) == ""
    assert len(kube.asked) == 2
