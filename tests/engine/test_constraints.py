"""Constrained answers of a model that knows nothing: random logits, judged by jsonschema, re and the chat's parser."""

from __future__ import annotations

import functools
import json
import math
import re
import time
from typing import Any

import jsonschema_rs
import pytest
import torch

from liuli.engine import Engine
from liuli.engine.constraints import Constraint, Matcher, check, masks
from liuli.engine.sampling import Sampler, Sampling
from liuli.errors import UsageError
from liuli.text.chat import parse_answer
from liuli.text.tokenizer import SPECIALS, Tokenizer

from .conftest import byte_tokenizer, make_model

V = 500
SOURCE = "琉璃是一种玻璃，工匠用火把沙子熔化成透明的宝物。Glass is made of sand and fire, in Boshan and Murano."


@functools.cache
def tokenizer() -> Tokenizer:
    """Some merges, so that tokens cross the borders of JSON and of Chinese characters."""
    return Tokenizer.train([SOURCE * 3 + ' {"name": "琉璃", "n": [12, 3.5], "is": true}, "a": "b"}' * 9], 420)


def answers(constraint: Constraint | None, count: int, steps: int = 400, **settings: Any) -> list[list[int]]:
    """Tokens of answers written from random logits, in one batch; the signs that end things are made likelier.

    As in the engine, the model has more ids than the tokenizer, and of the control tokens only some may be drawn.
    """
    spoken, sampler = tokenizer(), Sampler(V, torch.device("cpu"), tokenizer().stops, tokenizer())
    each = [Sampling(seed=seed, max_tokens=steps, constraint=constraint, **settings) for seed in range(count)]
    sampler.add(each, [[]] * count)
    generator, written = torch.Generator().manual_seed(0), [list[int]() for _ in each]
    likelier_V = torch.zeros(V)
    likelier_V[: len(SPECIALS)] = likelier_V[spoken.vocab_size :] = -math.inf
    likelier_V[[spoken.call, spoken.think, spoken.end_think]] = 0.0
    likelier_V[[*(spoken.encode(sign)[0] for sign in '"}],'), *spoken.stops]] = 3.0
    for _ in range(steps):
        running = [row for row, ids in enumerate(written) if not ids or ids[-1] not in spoken.stops]
        if not running:
            break
        chosen_B1 = sampler(likelier_V + torch.randn(len(running), V, generator=generator), running)
        for row, id in zip(running, chosen_B1[:, 0].tolist(), strict=True):
            written[row].append(id)
    assert all(ids[-1] in spoken.stops for ids in written)  # it could always end
    return written


def texts(constraint: Constraint, count: int, **settings: Any) -> list[str]:
    written = answers(constraint, count, **settings)
    assert not any(id < len(SPECIALS) for ids in written for id in ids[:-1])
    return [tokenizer().decode(ids[:-1]) for ids in written]


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "size": {"enum": ["小", "大", None]},
        "share": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 20},
        "marks": {"type": "array", "items": {"$ref": "#/$defs/mark"}, "minItems": 1, "maxItems": 3},
        "when": {"type": "string", "format": "date"},
        "id": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
        "either": {"anyOf": [{"type": "boolean"}, {"type": "integer", "multipleOf": 7}]},
    },
    "required": ["name", "size", "share", "marks", "id"],
    "$defs": {"mark": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 100}}}},
}


def test_30_of_30_answers_of_random_logits_parse_and_validate() -> None:
    judge = jsonschema_rs.validator_for(SCHEMA)
    written = texts(Constraint("json_schema", json.dumps(SCHEMA)), 30)
    assert [judge.is_valid(json.loads(text)) for text in written] == [True] * 30
    assert len(set(written)) == 30
    assert all(json.loads(text).keys() <= SCHEMA["properties"].keys() for text in written)  # nothing is invented


def test_json_has_no_room_for_padding() -> None:
    matcher = Matcher(Constraint("json_object"), tokenizer())
    space = tokenizer().encode(" ")[0]
    for id in tokenizer().encode('{"a": '):
        assert masks([matcher], V)[0, id]
        matcher.advance(id)
    assert not masks([matcher], V)[0, space]


def test_objects_stay_open_where_another_part_of_the_schema_adds_to_them() -> None:
    parts = [{"properties": {name: {"type": "boolean"}}, "required": [name]} for name in "ab"]
    for schema in ({"type": "object", "allOf": parts}, {"type": "object", **parts[0], "anyOf": [parts[1]]}):
        judge = jsonschema_rs.validator_for(schema)
        assert all(judge.is_valid(json.loads(text)) for text in texts(Constraint("json_schema", json.dumps(schema)), 5))
    free = {"type": "object", "properties": {}, "additionalProperties": {"type": "boolean"}, "minProperties": 2}
    assert all(len(json.loads(text)) >= 2 for text in texts(Constraint("json_schema", json.dumps(free)), 5))


def test_20_of_20_quotes_are_verbatim() -> None:
    quotes = texts(Constraint("substring", SOURCE), 20, min_tokens=2)
    assert all(quote in SOURCE for quote in quotes)
    assert sum(len(quote) > 1 and not quote.isascii() for quote in quotes) >= 5  # of Chinese text too


@pytest.mark.parametrize(
    ("constraint", "good"),
    [
        (Constraint("choice", json.dumps(["是", "否", "<|end|>", "a\n\"b\\/'\x00^$.*", "é"])), None),
        (Constraint("regex", r"([a-c]{2,3}|琉璃)-[0-9]{1,2}/[^x]"), r"([a-c]{2,3}|琉璃)-[0-9]{1,2}/[^x]"),
        (Constraint("grammar", 'start: sum\nsum: N ("+" N)*\nN: /[1-9][0-9]?/'), r"[1-9][0-9]?(\+[1-9][0-9]?)*"),
        (Constraint("json_object"), None),
    ],
    ids=lambda value: value.kind if isinstance(value, Constraint) else "",
)
def test_an_answer_is_what_the_constraint_says(constraint: Constraint, good: str | None) -> None:
    written = texts(constraint, 30)
    if constraint.kind == "choice":
        assert set(written) == set(json.loads(constraint.text))
    elif good is None:
        assert all(isinstance(json.loads(text), dict) for text in written)
    else:
        assert all(re.fullmatch(good, text, re.DOTALL) for text in written)
        assert len(set(written)) > 10


# --- calls -----------------------------------------------------------------------------------------------------------

TOOLS: dict[str, Any] = {
    "calculator": {"properties": {"expression": {"type": "string", "maxLength": 9}}, "required": ["expression"]},
    "now": {"type": "object", "properties": {}},
}


def calls(ids: list[int]) -> list[str]:
    """Names of the calls in an answer, which must be well-formed, with valid arguments."""
    message = parse_answer(ids, tokenizer())
    for call in message.tool_calls:
        schema = {"type": "object", **TOOLS[call.name], "additionalProperties": False}
        assert jsonschema_rs.validator_for(schema).is_valid(json.loads(call.arguments))
    return [call.name for call in message.tool_calls]


def test_a_required_answer_is_always_a_call_that_can_be_read() -> None:
    written = answers(Constraint("tools", json.dumps(TOOLS), required=True), 30)
    made = [calls(ids) for ids in written]
    assert all(names and not parse_answer(ids, tokenizer()).content for names, ids in zip(made, written, strict=True))
    assert {name for names in made for name in names} == set(TOOLS)
    assert max(map(len, made)) > 1
    alone = answers(Constraint("tools", json.dumps(TOOLS), required=True, parallel=False), 30)
    assert {len(calls(ids)) for ids in alone} == {1}


def test_an_answer_that_may_call_is_free_until_it_does() -> None:
    spoken, constraint = tokenizer(), Constraint("tools", json.dumps(TOOLS))
    written = answers(constraint, 40, logit_bias=((spoken.call, 3.0),))
    called = [ids for ids in written if spoken.call in ids]
    assert 5 <= len(called) <= 35
    assert all(calls(ids) for ids in called)
    no_call = ((spoken.call, -100.0),)
    assert answers(constraint, 5, logit_bias=no_call) == answers(None, 5, logit_bias=no_call)


def test_after_a_call_only_the_end_or_another_call_may_come() -> None:
    spoken = tokenizer()
    for parallel, then in ((True, {spoken.end, spoken.bos, spoken.call}), (False, {spoken.end, spoken.bos})):
        matcher = Matcher(Constraint("tools", json.dumps(TOOLS), True, parallel), spoken)
        for id in [spoken.call, *spoken.encode("now {}")]:
            matcher.advance(id)
        assert set(masks([matcher], V)[0].nonzero()[:, 0].tolist()) == then
        assert matcher.finished is not parallel


# --- in the engine ---------------------------------------------------------------------------------------------------


def test_the_engine_writes_one_answer_as_asked_while_it_writes_others_freely() -> None:
    spoken = byte_tokenizer()
    engine = Engine(make_model("qwen3", context=400), spoken)
    asked = Constraint("json_schema", json.dumps(SCHEMA))
    each = [Sampling(seed=0, max_tokens=60), Sampling(seed=1, max_tokens=390, constraint=asked)]
    judge = jsonschema_rs.validator_for(SCHEMA)
    for ids in (engine.generate([[1, 40]] * 2, each)[1].ids, engine.generate([[1, 40]], each[1:])[0].ids):
        assert ids[-1] in spoken.stops and judge.is_valid(json.loads(spoken.decode(ids[:-1])))


def test_an_answer_whose_constraint_becomes_too_costly_ends_in_an_error_and_harms_no_other() -> None:
    engine = Engine(make_model("qwen3"), byte_tokenizer())
    costly = Sampling(seed=0, max_tokens=20, constraint=Constraint("grammar", 'start: "a"{1000000}'))
    free = Sampling(seed=1, max_tokens=20, ignore_eos=True)
    broken, whole = engine.generate([[1, 40]] * 2, [costly, free])
    assert broken.stopped_by == "error"
    assert whole.ids == engine.generate([[1, 40]], free)[0].ids
    with pytest.raises(UsageError, match="uniqueItems"):
        engine.generate([[1]], Sampling(constraint=Constraint("json_schema", '{"type": "array", "uniqueItems": true}')))


# --- borders ---------------------------------------------------------------------------------------------------------


def test_where_bias_and_bars_leave_nothing_the_constraint_holds_and_a_finished_answer_ends() -> None:
    (yes,) = tokenizer().encode("y")
    written = answers(Constraint("choice", '["y"]'), 9, logit_bias=((yes, -100.0),), ignore_eos=True)
    assert all(ids[0] == yes and ids[1] in tokenizer().stops and len(ids) == 2 for ids in written)


def test_ids_that_only_the_model_has_are_never_allowed() -> None:
    matcher = Matcher(Constraint("regex", "(.|\n)*"), tokenizer())
    assert masks([matcher, matcher], V).sum(-1).tolist() == [masks([matcher], V)[0, : tokenizer().vocab_size].sum()] * 2
    assert not masks([matcher], V)[0, tokenizer().vocab_size :].any()


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"type": "object", "properties": {"a": {"type": "array", "contains": {}}}}, "contains"),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if"),
        ({"type": "string", "format": "phone"}, "phone"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ({"type": "strng"}, "strng"),
        ({"$ref": "#"}, "no answer"),
        ({"$ref": "http://example.com/a.json"}, "example.com"),
        ({"$ref": "file:///etc/passwd"}, "passwd"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
        ([], "object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_followed_to_the_letter_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        check(Constraint("json_schema", json.dumps(schema)), tokenizer())
    if schema and named != "no answer":  # nested in a call, the latter could go on for ever
        with pytest.raises(UsageError):
            check(Constraint("tools", json.dumps({"a": {"properties": {"b": schema}, "required": ["b"]}})), tokenizer())


@pytest.mark.parametrize(
    "wrong",
    [
        Constraint("json_schema", '{"a'),
        Constraint("choice", "[]"),
        Constraint("choice", '"yes"'),
        Constraint("tools", '{"two words": {}}'),
        Constraint("tools", "{}"),
        Constraint("regex", "a("),
        Constraint("grammar", 'start: "x'),
        Constraint("grammar", 'start: <|user|> "x"'),
        Constraint("grammar", "start: <[0-3]>"),
        Constraint("grammar", 'start: /a\n"/ <|call|> "x"'),
        Constraint("grammar", 'start: /a\n"/ <[8]> "x"'),
        Constraint("grammar", 'start: "a" # /\n | <|call|> # /'),
        Constraint("grammar", "start: start"),
    ],
    ids=lambda constraint: constraint.text,
)
def test_a_constraint_that_makes_no_sense_is_refused(wrong: Constraint) -> None:
    with pytest.raises(UsageError, match=wrong.kind):
        check(wrong, tokenizer())


def nested(depth: int) -> str:
    return '{"type":"object","properties":{"a":' * depth + "{}" + "}}" * depth


HOSTILE = [
    *(Constraint("regex", each) for each in ("(a+)+b", "((a|aa)+)+c", "(.*a){20}", ".*a.{200}", "(a|b)*a(a|b){30}")),
    *(Constraint("regex", each) for each in ("(a?){200}a{200}", "((a{1,1000}){1,1000}){1,1000}", "(.*a.*b.*c){30}")),
    Constraint("json_schema", json.dumps({"enum": [f"value {7919 * i % 20011}" for i in range(20_000)]})),
    Constraint("choice", json.dumps([f"value {7919 * i % 20011}" for i in range(20_000)])),
    *(Constraint("json_schema", nested(depth)) for depth in (100, 200, 5000)),
    Constraint("json_schema", "[" * 400_000),
    Constraint("json_schema", json.dumps({"properties": {f"k{i}": {"type": "string"} for i in range(20_000)}})),
    Constraint(
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"required": [f"k{i}{j}"]} for i in range(4)]} for j in range(12)]}),
    ),
    Constraint("substring", SOURCE * 200),
    Constraint("substring", SOURCE * 20_000),
    Constraint("grammar", 'start: e\ne: e "+" e | "x" | e e'),
    Constraint("grammar", 'start: "a"{1000000}'),
    *(Constraint("grammar", f"start: {quote}" + f"\\{quote}" * 9990) for quote in '/"'),
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda constraint: f"{constraint.kind} {constraint.text[:24]}")
def test_a_hostile_constraint_is_soon_followed_or_refused(hostile: Constraint) -> None:
    began = time.thread_time()
    try:
        matcher = Matcher(hostile, tokenizer())
    except UsageError:
        pass
    else:
        for _ in range(50):
            allowed = masks([matcher], V)[0].nonzero()[:, 0].tolist()
            assert allowed or matcher.error
            if matcher.finished:
                break
            matcher.advance(allowed[-1])
    assert time.thread_time() - began < 1.5  # of this thread; a quiet core takes a third of it for the worst
