"""Attribute schema, the two prompts, and what is made of an answer."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.describe.text.prompts import Prompt, build_prompt, load_schema, parse_answer
from training.describe.text.schema import DEFAULT_SCHEMA, KINDS, Schema

EXAMPLES = ['A man in a "red" shirt.', "woman, black\ncoat"]


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_schema()


@pytest.fixture
def edited(tmp_path):
    """Writes the default schema with one change, made by a function, and returns its path."""

    def write(change) -> Path:
        value = json.loads(DEFAULT_SCHEMA.read_text(encoding="utf-8"))
        value = change(value) or value
        path = tmp_path / "schema.json"
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_names_its_attributes_rules_and_examples(schema, kind):
    prompt = build_prompt(schema, kind, EXAMPLES, (15, 40))
    for item in schema.attributes(kind):
        assert f"- {item.name}: {item.description}{' (always)' if item.required else ''}\n" in prompt.user
    other = schema.attributes("clothing" if kind == "identity" else "identity")
    assert not [item for item in other if f"- {item.name}: {item.description}" in prompt.user]
    assert "15 to 40 words" in prompt.user and "Do not guess" in prompt.user and "Say nothing about" in prompt.user
    assert '- "A man in a \\"red\\" shirt."\n- "woman, black coat"\n' in prompt.user
    assert "never guess" in prompt.system and f'{{"{kind}": "your text"}}' in prompt.user
    assert "style of these captions" not in build_prompt(schema, kind, [], (15, 40)).user


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_s_schema_asks_for_one_text(schema, kind):
    answer = build_prompt(schema, kind, [], (5, 9)).json_schema
    assert answer["type"] == "object" and answer["required"] == [kind] == list(answer["properties"])
    assert answer["properties"][kind]["type"] == "string" and answer["additionalProperties"] is False


def test_the_hash_is_of_all_that_a_prompt_depends_on(schema, edited):
    def described(value):
        value["identity"]["attributes"][0]["description"] = "something else"

    given = (schema, "identity", EXAMPLES, (15, 40))
    first = build_prompt(*given)
    assert re.fullmatch(r"[0-9a-f]{16}", first.hash) and build_prompt(*given) == first
    assert build_prompt(load_schema(), "identity", tuple(EXAMPLES), (15, 40)).hash == first.hash
    others = [
        build_prompt(schema, "clothing", EXAMPLES, (15, 40)),
        build_prompt(schema, "identity", EXAMPLES[:1], (15, 40)),
        build_prompt(schema, "identity", EXAMPLES[::-1], (15, 40)),
        build_prompt(schema, "identity", EXAMPLES, (15, 41)),
        build_prompt(schema, "identity", EXAMPLES, (14, 40)),
        build_prompt(schema.without(["skin"]), "identity", EXAMPLES, (15, 40)),
        build_prompt(load_schema(edited(described)), "identity", EXAMPLES, (15, 40)),
    ]
    assert len({prompt.hash for prompt in (first, *others)}) == 8


@pytest.mark.parametrize(
    ("kind", "examples", "words", "match"),
    [
        ("both", [], (5, 9), "kind must be one of identity, clothing, got 'both'"),
        ("identity", [], (9, 5), "words must be a range of at least 1 word, the lower number first, got 9 to 5"),
        ("identity", [], (0, 5), "words must be a range of at least 1 word"),
        ("identity", ["a man", " "], (5, 9), r"examples must not be empty texts, got \['a man', ' '\]"),
    ],
)
def test_prompts_that_cannot_be_built(schema, kind, examples, words, match):
    with pytest.raises(ValueError, match=match):
        build_prompt(schema, kind, examples, words)


def test_sensitive_attributes_can_be_left_out(schema):
    less = schema.without(["skin", "age"]).without(["sex"])
    assert [item.name for item in less.left_out] == ["age", "skin", "sex"]
    user = build_prompt(less, "identity", [], (5, 30)).user
    assert "- skin:" not in user and "- age:" not in user and "- hair:" in user
    assert "Do not mention, directly or in passing: age (age group" in user
    assert "Do not mention, directly or in passing" in build_prompt(less, "clothing", [], (5, 30)).user
    assert "Do not mention, directly" not in build_prompt(schema, "identity", [], (5, 30)).user


@pytest.mark.parametrize("name", ["hair", "nose", "upper"])
def test_nothing_else_can_be_left_out(schema, name):
    expected = f"leave_out must name sensitive attributes of the schema (sex, age, skin), got {name}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        schema.without(["skin", name])


def test_a_kind_keeps_an_attribute(edited):
    path = edited(lambda value: value["identity"].update(attributes=value["identity"]["attributes"][:2]))
    with pytest.raises(ValueError, match="leave_out=sex, age leaves no attribute of identity"):
        load_schema(path).without(["sex", "age"])


def test_a_schema_of_one_s_own(edited):
    def shorter(value):
        value["clothing"]["attributes"] = value["clothing"]["attributes"][:1]
        value["clothing"]["attributes"][0]["words"] = ["toga"]

    schema = load_schema(edited(shorter))
    assert [item.name for item in schema.clothing] == ["upper"] and schema.clothing[0].words == ("toga",)
    assert schema.identity == load_schema().identity


def test_a_schema_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="the attribute schema .*none.json does not exist"):
        load_schema(tmp_path / "none.json")
    for content in ("{", "[" * 200_000):
        (tmp_path / "broken.json").write_text(content)
        with pytest.raises(ValueError, match="broken.json is not valid JSON"):
            load_schema(tmp_path / "broken.json")


def _first(**values):
    return lambda value: value["identity"]["attributes"][0].update(values)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda value: [1], r"must be an object with the keys identity and clothing, got \[1\]"),
        (lambda value: {"identity": {}}, "must be an object with the keys identity and clothing, got identity"),
        (
            lambda value: value.update(clothing=3),
            "clothing must be an object with the keys attributes and neutral, got 3",
        ),
        (lambda value: value["clothing"].update(attributes=[]), "attributes must be a list of at least one attribute"),
        (
            lambda value: value["identity"]["attributes"].append(7),
            r"identity.attributes\[10\] must be an object with the keys",
        ),
        (_first(colour="red"), r"attributes\[0\] must be an object with the keys name, description, words, leaks"),
        (_first(required="yes"), r"attributes\[0\].required must be of type bool, got 'yes'"),
        (_first(name=" "), r"attributes\[0\].name must not be empty"),
        (_first(words=[]), r"attributes\[0\].words must have at least one word: no text could cover sex"),
        (_first(words=["man", ""]), r"attributes\[0\].words must be a list of words and phrases, got \['man', ''\]"),
        (_first(leaks=[]), r"attributes\[0\].leaks must have at least one word: sex is sensitive"),
        (_first(name="hair"), "names attributes more than once: hair"),
        (lambda value: value["identity"].update(neutral="hair band"), "neutral must be a list of words and phrases"),
    ],
)
def test_schemas_that_are_broken(edited, change, match):
    with pytest.raises(ValueError, match=match):
        load_schema(edited(change))


@pytest.fixture(scope="module")
def prompt(schema) -> Prompt:
    return build_prompt(schema, "identity", [], (5, 30))


@pytest.mark.parametrize(
    "answer",
    [
        '{"identity": "A tall man."}',
        ' {"identity": " A tall man. "}\n',
        '```json\n{"identity": "A tall man."}\n```',
        'Sure: {"identity": "A tall man."} I hope this helps!',
        '<think>{"identity": "no, {wait"}</think>{"identity": "A tall man."}',
        '{"clothing": "A coat.", "identity": "A tall man."}',
    ],
)
def test_texts_are_found_in_answers(prompt, answer):
    assert parse_answer(answer, prompt) == "A tall man."


def test_line_breaks_in_an_answer_are_kept_for_the_checks(prompt):
    assert parse_answer('{"identity": "A tall\nman."}', prompt) == "A tall\nman."


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ("", "the answer is empty"),
        ("<think>hm</think> ", "the answer is empty"),
        ("I'm sorry, but I can't help with that.", "the answer is a refusal: I'm sorry"),
        ("A tall man.", "the answer holds no JSON object: 'A tall man.'"),
        ('{"identity": "A tall m', "the answer is cut off: ... .*A tall m"),
        ('```json\n{"identity": "A tall', "the answer is cut off"),
        ('{"a":' * 100_000, "the answer is cut off"),
        ('{"identity": "A" "B"}', "the answer is not valid JSON: .*delimiter"),
        ('{"clothing": "A coat."}', "the answer has no text under 'identity'"),
        ('{"identity": " "}', "the answer has no text under 'identity'"),
        ('{"identity": ["A tall man."]}', "the answer has no text under 'identity'"),
        ('{"identity": "A tall man \\ud83d."}', "the answer has a lone surrogate, half of a character"),
    ],
)
def test_answers_without_a_text(prompt, answer, match):
    with pytest.raises(ValueError, match=match):
        parse_answer(answer, prompt)


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), st.booleans())
def test_every_text_survives_the_way_through_json(text, ascii_only):
    prompt = build_prompt(load_schema(), "identity", [], (5, 30))
    assert parse_answer(json.dumps({"identity": text}, ensure_ascii=ascii_only), prompt) == text.strip()


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.text(), st.text('{}[]":,\\ identyu0d8')))
def test_any_answer_gives_a_text_or_a_reason(answer):
    prompt = build_prompt(load_schema(), "identity", [], (5, 30))
    try:
        assert parse_answer(answer, prompt)
    except ValueError as error:
        assert str(error).startswith("the answer ")


def test_prompts_whose_answers_were_stored_before_never_change():
    hashes = [
        build_prompt(load_schema(), kind, shown, (10, 45)).hash
        for kind in KINDS
        for shown in ((), ("A man.", 'x "y" z'))
    ]
    assert hashes == ["5fd271c79ade9e36", "956e4b2248a8ca12", "7e7811c8afb62c01", "cbd35434e57565d4"]
    without = load_schema().without(("sex",))
    assert [build_prompt(without, kind, (), (10, 45)).hash for kind in KINDS] == [
        "ad0bdb7b21b15d74",
        "c28c396aff868eff",
    ]
