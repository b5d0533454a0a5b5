"""Selectors against a table taken from Kubernetes' own rules (k8s.io/apimachinery/pkg/labels)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_operator.metrics_adapter.errors import BadRequestError
from octavo_operator.metrics_adapter.label_selector import parse_label_selector

LABELS = {"app": "qwen", "tier": "gpu", "octavo.dev/modeldeployment": "qwen", "size": "7", "empty": ""}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("  ", True),
        ("app=qwen", True),
        ("app==qwen", True),
        ("app = qwen", True),
        (" app = qwen , tier = gpu ", True),
        ("app=qwen,tier=cpu", False),
        ("app=other", False),
        ("app!=other", True),
        ("app!=qwen", False),
        ("absent!=x", True),
        ("octavo.dev/modeldeployment=qwen", True),
        ("empty=", True),
        ("app=", False),
        ("absent=", False),
        ("app", True),
        ("absent", False),
        ("!absent", True),
        ("! app", False),
        ("app in (qwen)", True),
        ("app in (other, qwen)", True),
        ("app in (other)", False),
        ("app in(qwen)", True),
        ("empty in (,x)", True),
        ("absent in (x)", False),
        ("app notin (other)", True),
        ("app notin (qwen,other)", False),
        ("absent notin (x)", True),
        ("size>6", True),
        ("size>7", False),
        ("size<8", True),
        ("size > 6 , size < 8", True),
        ("app>1", False),
        ("absent<1", False),
        ("in", False),
        ("in in (in)", False),
        ("app,tier,!absent,app in (qwen),size>1", True),
    ],
)
def test_a_selector_selects_as_kubernetes_does(text, matches):
    assert parse_label_selector(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "app=qwen,",
        ",app=qwen",
        "app=a=b",
        "app in qwen",
        "app in (qwen",
        "app in",
        "app in qwen)",
        "app notin",
        "app qwen",
        "app!",
        "=qwen",
        "!",
        "!app=qwen",
        "app=qwen tier=gpu",
        "-app=qwen",
        "app=-qwen",
        "a/b/c=d",
        "UPPER/app=x",
        "size>big",
        "size>",
        "size>6.5",
        "app=" + "x" * 64,
        "x" * 64,
        "app=qwen\x00",
        "a=" + "b," * 20_000,
    ],
)
def test_what_is_no_selector_is_a_bad_request(text):
    with pytest.raises(BadRequestError):
        parse_label_selector(text)


def test_so_many_requirements_that_pods_could_not_be_held_against_them_are_refused():
    assert len(parse_label_selector(",".join(f"a{number}" for number in range(100))).requirements) == 100

    with pytest.raises(BadRequestError, match="more than 100 requirements"):
        parse_label_selector(",".join(f"!a{number}" for number in range(101)))


def test_the_refusal_says_where_and_what():
    with pytest.raises(BadRequestError, match=r"wanted '\(', found 'qwen' at character 7"):
        parse_label_selector("app in qwen")


@given(st.text(alphabet="ab=!,()<> in/.-0", max_size=30))
def test_any_text_either_parses_or_is_a_bad_request(text):
    try:
        selector = parse_label_selector(text)
    except BadRequestError:
        return
    assert selector.matches({}) in (True, False)


names = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,8}[a-z0-9])?", fullmatch=True)


@given(st.dictionaries(names, names, max_size=4), st.dictionaries(names, names, max_size=4))
def test_the_selector_of_match_labels_selects_exactly_the_supersets(wanted, labels):
    text = ",".join(f"{key}={value}" for key, value in wanted.items())

    assert parse_label_selector(text).matches(labels) is (wanted.items() <= labels.items())
