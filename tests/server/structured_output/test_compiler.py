"""What a grammar lets through is what its kind means, whatever the weights: random walks over the allowed tokens."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo_server.errors import InvalidRequestError
from octavo_server.structured_output.compiler import MAX_CACHED, MAX_CACHED_COMPILE_S, GrammarCompiler
from octavo_server.structured_output.grammar import MAX_CHOICES, MAX_GRAMMAR_CHARS
from octavo_server.structured_output.matching import MAX_MESSAGE_CHARS
from octavo_server.structured_output.params import StructuredOutputsParams
from octavo_server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from octavo_testing.schemas import SCHEMAS
from octavo_testing.server import VOCABULARY, write_tokenizer

EOS = 1
PADDED = VOCABULARY + 32
"""Models pad their vocabularies."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, vocab_size=PADDED, eos_token_ids=(EOS,))


def allowed(mask: bytes | None) -> list[int]:
    assert mask is not None
    return [token for token in range(8 * len(mask)) if mask[token // 8] >> (token % 8) & 1]


def walk(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: str, seed: int, limit: int = 600) -> str | None:
    """An output of random allowed tokens; None where it has not ended after `limit`.

    Half of the time it takes what may close something, else strings and lists would go on for ever.
    """
    state, rng, taken = compiler.start(grammar), random.Random(seed), bytearray()
    for _ in range(limit):
        tokens = allowed(state.allowed_tokens())
        closing = [
            token for token in tokens if token == EOS or re.fullmatch(rb'[]}"/<>-]+', tokenizer.token_bytes(token))
        ]
        token = rng.choice(closing if closing and rng.random() < 0.5 else tokens)
        assert state.accept(token), state.error
        if token == EOS:
            return taken.decode()
        taken += tokenizer.token_bytes(token)
    return None


def walks(compiler: GrammarCompiler, tokenizer: Tokenizer, count: int = 12, **params: Any) -> list[str]:
    """What ended by itself of `count` outputs."""
    grammar = compiler.compile(StructuredOutputsParams(**params))
    found = [walk(compiler, tokenizer, grammar, seed) for seed in range(count)]
    ended = [text for text in found if text is not None]
    assert ended, "nothing has ended by itself"
    return ended


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_output_that_ends_follows_its_schema(name: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = SCHEMAS[name]

    for text in walks(compiler, tokenizer, json=schema):
        jsonschema.validate(
            json.loads(text), schema, format_checker=jsonschema.FormatChecker(formats=("date", "uuid", "email"))
        )


def test_json_object_is_an_object(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    assert all(isinstance(json.loads(text), dict) for text in walks(compiler, tokenizer, json_object=True))


def test_json_without_any_whitespace_has_none_between_its_tokens(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    schema = SCHEMAS["array-of-objects"]

    for text in walks(compiler, tokenizer, json=schema, disable_any_whitespace=True):
        assert json.loads(text)
        assert not re.search(r"\s", text)


def test_whitespace_between_the_tokens_of_json_is_bounded(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.start(compiler.compile(StructuredOutputsParams(json=SCHEMAS["person"])))
    [brace], [blank] = (tokenizer.encode(text, add_special_tokens=False) for text in ("{", " "))

    assert state.accept(brace)
    for _ in range(40):
        assert state.accept(blank)

    assert blank not in allowed(state.allowed_tokens())


def test_whitespace_follows_the_pattern_that_is_given(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    found = "".join(walks(compiler, tokenizer, json=SCHEMAS["matrix"], whitespace_pattern="[\n]"))

    assert set(re.findall(r"\s", found)) == {"\n"}


@pytest.mark.parametrize(
    "pattern", ["[a-c]{2,4}", r"\d{3}-\d{2}", "(yes|no)!?", "ä+ö", "", r"https?://[a-z]{1,5}\.org"]
)
def test_a_whole_output_matches_its_regex(pattern: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    if not pattern:
        assert compiler.compile(StructuredOutputsParams(regex=pattern))
        return
    assert all(re.fullmatch(pattern, text) for text in walks(compiler, tokenizer, regex=pattern))


def test_an_output_is_one_of_its_choices(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    choices = ["yes", "no", "no way", 'quo"te', "back\\slash", "東京", "new\nline", "yes"]

    assert {*walks(compiler, tokenizer, count=60, choice=choices)} == {*choices}


@given(
    choices=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_texts_may_be_choices(
    choices: list[str], seed: int, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = compiler.compile(StructuredOutputsParams(choice=tuple(choices)))

    assert walk(compiler, tokenizer, grammar, seed) in choices


@given(data=st.data(), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_constants_and_names_survive_a_schema(
    data: st.DataObject, seed: int, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    texts = st.text(st.characters(codec="utf-8"), max_size=6)
    values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts
    names = data.draw(st.lists(texts, min_size=1, max_size=3, unique=True))
    schema = {
        "type": "object",
        "properties": {name: {"enum": data.draw(st.lists(values, min_size=1, max_size=3))} for name in names},
        "required": names,
        "additionalProperties": False,
    }
    grammar = compiler.compile(StructuredOutputsParams(json=schema, disable_any_whitespace=True))

    text = walk(compiler, tokenizer, grammar, seed)

    assert text is not None
    jsonschema.validate(json.loads(text), schema)


def test_an_output_is_one_of_as_many_choices_as_are_taken(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    choices = [f"choice {number}" for number in range(MAX_CHOICES)]

    assert {*walks(compiler, tokenizer, count=5, choice=choices)} < {*choices}


@pytest.mark.parametrize(
    "grammar",
    ['start: greeting " " name\ngreeting: "hi" | "bye"\nname: /[A-Z][a-z]{1,3}/', 'root ::= ("hi" | "bye") " " [A-Z] [a-z] [a-z]'],
    ids=["lark", "gbnf"],
)  # fmt: skip
def test_an_output_follows_its_grammar(grammar: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    assert all(re.fullmatch("(hi|bye) [A-Z][a-z]{1,3}", text) for text in walks(compiler, tokenizer, grammar=grammar))


@pytest.mark.parametrize("marker", ["</think>", "<|im_start|>"], ids=["text", "special-token"])
def test_a_grammar_may_bind_only_what_follows_a_marker(
    marker: str, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    params = StructuredOutputsParams(json=SCHEMAS["person"], after=marker)
    state = compiler.start(compiler.compile(params))

    for token in tokenizer.encode('free {"text <think', add_special_tokens=False):
        assert state.accept(token)
    for token in tokenizer.encode(marker + '{"name": "</think>", "age": 3}', add_special_tokens=False):
        assert state.accept(token)

    assert EOS in allowed(state.allowed_tokens())
    assert not state.accept(tokenizer.encode("x", add_special_tokens=False)[0])


@pytest.mark.parametrize(
    "marks", [("<think>", "</think>"), ("<|im_start|>", "</think>")], ids=["text", "special-token"]
)
@pytest.mark.parametrize(
    ("shape", "is_allowed"),
    [
        ("{body}", True),
        ("{opening}free {{{closing}{body}", True),
        ("{call}free", True),
        ("{opening}free{closing}{call}free", True),
        ("free", False),
        ("{opening}free{closing}free", False),
        ("{opening}{body}", False),
        ("{body}{call}", False),
    ],
)
def test_an_output_may_think_first_or_be_something_else_that_has_a_mark(
    shape: str, is_allowed: bool, marks: tuple[str, str], compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    opening, closing = marks
    text = shape.format(opening=opening, closing=closing, body='{"name": "x", "age": 3}', call="<tool_call>")
    params = StructuredOutputsParams(json=SCHEMAS["person"], after=closing, opening=opening, unless="<tool_call>")
    state = compiler.start(compiler.compile(params))

    taken = all(state.accept(token) for token in tokenizer.encode(text, add_special_tokens=False))

    assert (taken and EOS in allowed(state.allowed_tokens())) == is_allowed


def test_an_output_may_end_only_where_its_grammar_ends(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    state = compiler.start(compiler.compile(StructuredOutputsParams(regex="ab?")))

    assert EOS not in allowed(state.allowed_tokens())
    assert state.accept(*tokenizer.encode("a", add_special_tokens=False))
    assert EOS in allowed(state.allowed_tokens())
    assert state.accept(*tokenizer.encode("b", add_special_tokens=False))
    assert allowed(state.allowed_tokens()) == [EOS]


def test_outputs_of_one_grammar_do_not_move_each_other(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = compiler.compile(StructuredOutputsParams(choice=("aa", "bb")))
    first, second = compiler.start(grammar), compiler.start(grammar)

    assert first.accept(*tokenizer.encode("a", add_special_tokens=False))

    assert second.accept(*tokenizer.encode("b", add_special_tokens=False))
    assert len(allowed(first.allowed_tokens())) == 1


def test_free_text_holds_no_special_token_but_the_end(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    ids = allowed(compiler.start(compiler.compile(StructuredOutputsParams(regex="(?s:.*)"))).allowed_tokens())

    assert tokenizer.special_token_ids & {*ids} == {EOS}


def test_a_mask_covers_the_padded_vocabulary_and_allows_nothing_of_the_padding(compiler: GrammarCompiler) -> None:
    mask = compiler.start(compiler.compile(StructuredOutputsParams(regex="(?s:.*)"))).allowed_tokens()

    assert mask is not None
    assert 8 * len(mask) >= PADDED
    assert max(allowed(mask)) < VOCABULARY


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "exactly one of"),
    "two": ({"regex": "a", "choice": ("a",)}, "got regex, choice"),
    "json-text": ({"json": "{"}, "no valid JSON"),
    "json-number": ({"json": "3"}, "must be a JSON Schema"),
    "unknown-type": ({"json": {"type": "strng"}}, "Invalid type: strng"),
    "unsupported-keyword": ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    "not": ({"json": {"not": {"type": "string"}}}, "not"),
    "if": ({"json": {"if": {"type": "string"}, "then": {"minLength": 2}}}, "if"),
    "unknown-format": ({"json": {"type": "string", "format": "banana"}}, "banana"),
    "overlapping-one-of": ({"json": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}, "oneOf"),
    "nothing-can-satisfy": ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum (5)"),
    "false": ({"json": False}, "nothing satisfies"),
    "missing-ref": ({"json": {"$ref": "#/$defs/x"}}, "/$defs/x"),
    "remote-ref": ({"json": {"$ref": "http://127.0.0.1:1/schema"}}, "http://127.0.0.1:1/schema"),
    "bad-regex": ({"regex": "(a"}, "unclosed group"),
    "half-a-character": ({"regex": "\ud800"}, "lone surrogate"),
    "half-a-character-in-choice": ({"choice": ("\ud800",)}, "lone surrogate"),
    "half-a-character-in-json": ({"json": {"const": "\ud800"}}, "hex escape"),
    "options-of-the-compiler": ({"json": {"x-guidance": {"lenient": True}, "uniqueItems": True}}, "x-guidance"),
    "wrong-type": ({"regex": 3}, "regex must be text"),
    "matches-nothing": ({"regex": r"[^\s\S]"}, "no text matches it"),
    "never-ends": ({"grammar": "start: start"}, "no text matches it"),
    "look-around": ({"regex": "(?=a)b"}, "look-around"),
    "back-reference": ({"regex": r"(a)\1"}, "backreferences"),
    "empty-choice": ({"choice": ()}, "choice must be"),
    "empty-choice-text": ({"choice": ("",)}, "choice must be"),
    "many-choices": ({"choice": tuple(map(str, range(MAX_CHOICES + 1)))}, "choice must be"),
    "unknown-rule": ({"grammar": "start: nothing"}, "nothing"),
    "empty-grammar": ({"grammar": " "}, ""),
    "too-large": ({"regex": "a" * MAX_GRAMMAR_CHARS}, f"at most {MAX_GRAMMAR_CHARS:,}"),
    "bad-whitespace": ({"json": True, "whitespace_pattern": "("}, ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused_with_the_reason(name: str, compiler: GrammarCompiler) -> None:
    params, reason = REFUSED[name]

    with pytest.raises(InvalidRequestError) as refusal:
        compiler.compile(StructuredOutputsParams(**params))

    assert refusal.value.param == "structured_outputs"
    assert reason in str(refusal.value)
    assert len(str(refusal.value)) <= MAX_MESSAGE_CHARS + 100


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE: dict[str, dict[str, Any]] = {
    "huge-enum": {"json": {"enum": [f"value {number}" for number in range(12_000)]}},
    "deep": {"json": _deep(400)},
    "power": {"regex": "((a{1,100}){1,100}){1,100}"},
    "many-dots": {"regex": "(.*a.*b.*c){50}"},
    "nested-repeats": {"regex": "(a|b|c|d){1000}{1000}"},
    "large-counts": {"json": {"type": "array", "items": {"type": "string", "minLength": 10**6}, "minItems": 10**6}},
    "many-alternatives": {"json": {"anyOf": [{"type": "string", "pattern": f"^.*{n}.*x$"} for n in range(500)]}},
    "mutual-recursion": {
        "json": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
        }
    },
    "self-reference": {"json": {"$ref": "#"}},
    "ambiguous": {"grammar": "start: a\na: a a | /x*/"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_followed_but_never_runs_away(
    name: str, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    """Within a bound that a busy machine keeps too; what it guards against takes minutes or all memory."""
    began = time.process_time()
    try:
        state = compiler.start(compiler.compile(StructuredOutputsParams(**HOSTILE[name])))
    except InvalidRequestError:
        return
    finally:
        assert time.process_time() - began < 5
    rng = random.Random(7)
    for _ in range(40):
        mask = state.allowed_tokens()
        if mask is None:
            assert state.error
            break
        token = rng.choice(allowed(mask))
        if token == EOS or not state.accept(token):
            break
    assert time.process_time() - began < 10


RUNS_AWAY: dict[str, tuple[dict[str, Any], str]] = {
    "many-all-of": ({"json": {"allOf": [{"type": "string", "pattern": f"^.*{n}.*$"} for n in range(200)]}}, "s to compile"),
    "large-multiple": ({"json": {"type": "integer", "multipleOf": 99_999_989}}, "s to compile"),
    "gbnf-of-many-rules": (
        {"grammar": "\n".join(f'r{n} ::= "a" r{n + 1}' for n in range(9_000)) + '\nr9000 ::= "x"\nroot ::= r0'},
        "s to compile",
    ),
    "doubling-rules": (
        {"grammar": "start: r0\n" + "\n".join(f"r{n}: r{n + 1} r{n + 1}" for n in range(5_000)) + '\nr5000: "x"'},
        "MiB to compile",
    ),
}  # fmt: skip
"""What would hold a thread for minutes or take all memory."""


@pytest.mark.parametrize("name", RUNS_AWAY)
def test_a_grammar_that_would_run_away_is_refused_and_harms_nobody(name: str, compiler: GrammarCompiler) -> None:
    params, reason = RUNS_AWAY[name]
    began = time.process_time()

    with pytest.raises(InvalidRequestError, match=f"structured_outputs takes more than .* {reason}; simplify it"):
        compiler.compile(StructuredOutputsParams(**params))

    assert time.process_time() - began < 0.5
    assert compiler.compile(StructuredOutputsParams(choice=(name,)))


@pytest.mark.parametrize(
    "params",
    [
        {"json": {"type": "object", "properties": {f"k{n}": True for n in range(2_100)}}},
        {"json": {"anyOf": [{"type": "object", "properties": {f"k{n}": True}} for n in range(2_100)]}},
    ],
    ids=["properties", "alternatives"],
)
@pytest.mark.parametrize("after", [None, "</think>"])
def test_a_grammar_that_could_not_begin_is_refused(
    after: str | None, params: dict[str, Any], compiler: GrammarCompiler
) -> None:
    """It compiles, but the parser holds no more than 2,000 alternatives at a time."""
    with pytest.raises(InvalidRequestError, match="max is 2000"):
        compiler.compile(StructuredOutputsParams(**params, after=after))


def test_outputs_go_on_where_others_have_used_up_what_they_share(tokenizer: Tokenizer) -> None:
    """All outputs of a grammar fill one lexer, which holds so many states: enough for four of these ten branches."""
    pattern = "|".join(f"{letter}[0-9]{{25}}{letter}" for letter in "abcdefghij")
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCABULARY, eos_token_ids=(EOS,), max_lexer_states=120)
    grammar = compiler.compile(StructuredOutputsParams(regex=pattern))
    first = compiler.compiled(grammar)

    ended = [walk(compiler, tokenizer, grammar, seed) for seed in range(20)]

    assert all(text is not None and re.fullmatch(pattern, text) for text in ended)
    assert compiler.compiled(grammar) is not first


def test_an_output_that_needs_too_much_by_itself_ends_with_the_reason(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCABULARY, eos_token_ids=(EOS,), max_lexer_states=150)
    state = compiler.start(compiler.compile(StructuredOutputsParams(regex="[ab]{500}")))
    [letter] = tokenizer.encode("a", add_special_tokens=False)

    taken = 0
    while state.allowed_tokens() is not None and state.accept(letter):
        taken += 1

    assert 50 < taken < 500
    assert "too many states" in state.error


def test_the_cache_keeps_a_bounded_number_of_grammars(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCABULARY, eos_token_ids=(EOS,))

    for number in range(MAX_CACHED + 10):
        compiler.compile(StructuredOutputsParams(choice=(f"choice {number}",)))

    assert len(compiler._cache) == MAX_CACHED


def test_the_cache_keeps_little_of_what_took_long_to_compile(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCABULARY, eos_token_ids=(EOS,))
    grammar = compiler.compile(StructuredOutputsParams(choice=("long",)))
    compiler.compiled(grammar).compile_s = MAX_CACHED_COMPILE_S

    compiler.compile(StructuredOutputsParams(choice=("short",)))

    assert grammar not in compiler._cache
    assert len(compiler._cache) == 1


def test_threads_may_compile_and_start_at_once(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCABULARY, eos_token_ids=(EOS,))
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                grammar = compiler.compile(StructuredOutputsParams(regex=f"a{{{(number + turn) % 5 + 1}}}"))
                assert allowed(compiler.start(grammar).allowed_tokens())
        except BaseException as error:  # noqa: BLE001  # told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


def test_a_model_that_names_no_end_is_told_so(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, vocab_size=VOCABULARY, eos_token_ids=())

    with pytest.raises(InvalidRequestError, match="names none"):
        compiler.compile(StructuredOutputsParams(regex="a"))


@pytest.mark.model
def test_the_real_vocabulary_can_be_followed(smollm2_path: Path) -> None:
    tokenizer = load_tokenizer(smollm2_path)
    compiler = GrammarCompiler(tokenizer, vocab_size=49152, eos_token_ids=(2,))
    state = compiler.start(compiler.compile(StructuredOutputsParams(json=SCHEMAS["person"])))

    for token in tokenizer.encode('{"name": "Größe 🙂", "age": 41}', add_special_tokens=False):
        assert token in allowed(state.allowed_tokens())
        assert state.accept(token)

    assert 2 in allowed(state.allowed_tokens())
