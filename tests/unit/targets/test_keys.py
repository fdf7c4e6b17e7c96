"""Names of keys: the same cluster slot, told apart, and back again."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cachemig.targets.keys import SLOTS, TEMPORARY, VERSION, KeyTemplate, companion, escape, owner_of, slot

prefixes = pytest.mark.parametrize("prefix", [VERSION, TEMPORARY])
# Braces, glob characters and what follows a prefix of ours are likelier than by chance.
keys = st.text(st.sampled_from("{}*?[]\\^-:a \n") | st.characters(exclude_categories=["Cs"]), max_size=20)
templates = st.tuples(keys, keys).map("{key}".join).filter(lambda text: text.count("{key}") == 1)


@pytest.mark.parametrize(
    ("key", "expected"),
    [("123456789", 12739), ("foo", 12182), ("bar", 5061), ("", 0)],  # CRC16("123456789") = 0x31C3
)
def test_slots_that_redis_documents(key: str, expected: int) -> None:
    assert slot(key.encode()) == expected


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("{user1000}.following", "user1000"),
        ("{user1000}.followers", "user1000"),
        ("foo{}{bar}", None),
        ("foo{{bar}}zap", "{bar"),
        ("foo{bar}{zap}", "bar"),
        ("foo{bar", None),
        ("foo}bar{", None),
        ("}{foo}", "foo"),
    ],
)
def test_hash_tags_of_the_cluster_specification(key: str, hashed: str | None) -> None:
    import binascii

    assert slot(key.encode()) == binascii.crc_hqx((key if hashed is None else hashed).encode(), 0) % SLOTS


@prefixes
@given(key=keys.filter(bool))
@example(key="{")
@example(key="}")
@example(key="{}")
@example(key="a}b{c")
@example(key="{a}")
@example(key="{1}{1}a")
@example(key=" {a} \n")
@example(key="analysis:{user1000}:x")
def test_a_companion_stands_in_the_slot_of_its_key_and_leads_back(prefix: str, key: str) -> None:
    name = companion(prefix, key)
    assert name.startswith(prefix)
    assert slot(name.encode()) == slot(key.encode())
    assert owner_of(name, prefix) == key


@prefixes
@given(one=keys, other=keys)
def test_different_keys_have_different_companions(prefix: str, one: str, other: str) -> None:
    assume(one != other)
    assert companion(prefix, one) != companion(prefix, other)


@given(key=keys, other=keys)
def test_the_two_kinds_of_companions_are_apart(key: str, other: str) -> None:
    assert companion(VERSION, key) != companion(TEMPORARY, other)


def test_the_plain_form_is_the_documented_one() -> None:
    assert companion(VERSION, "analysis:ab12") == "cachemig:v:{analysis:ab12}"
    assert companion(TEMPORARY, "analysis:ab12") == "cachemig:t:{analysis:ab12}"


def test_every_slot_can_be_reached_from_a_key_with_a_brace() -> None:
    reached = set()
    for number in range(60_000):
        key = f"}}{number}"
        name = companion(VERSION, key)
        reached.add(slot(name.encode()))
        assert slot(name.encode()) == slot(key.encode())
    assert len(reached) > 0.95 * SLOTS  # 1 - e^(-60,000 / 16,384) is 0.974


@given(template=templates, key=keys)
@example(template="a{key}a", key="")
@example(template="{key}", key="")
def test_a_template_names_and_reads_back(template: str, key: str) -> None:
    parts = KeyTemplate(template)
    assert parts.name(key) == template.replace("{key}", key)
    assert parts.key_of(parts.name(key)) == key


@given(template=templates, name=keys)
def test_a_name_is_read_exactly_where_the_template_makes_it(template: str, name: str) -> None:
    parts = KeyTemplate(template)
    key = parts.key_of(name)
    if key is None:
        assert not (
            name.startswith(parts.before)
            and name.endswith(parts.after)
            and len(name) >= len(parts.before + parts.after)
        )
    else:
        assert parts.name(key) == name


def test_an_overlap_of_prefix_and_suffix_is_no_name() -> None:
    assert KeyTemplate("aba{key}aba").key_of("ababa") is None
    assert KeyTemplate("analysis:{key}").key_of("other:1") is None
    assert KeyTemplate("analysis:{key}:v1").key_of("analysis:1:v2") is None


def matches(pattern: str, text: str) -> bool:
    """Redis's own stringmatchlen (src/util.c), case-sensitive."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(matches(pattern[1:], text[at:]) for at in range(len(text) + 1))
    if not text:
        return False
    if pattern[0] == "?":
        return matches(pattern[1:], text[1:])
    if pattern[0] == "[":
        rest = pattern[1:]
        negated = rest.startswith("^")
        rest = rest[negated:]
        found = False
        while rest and rest[0] != "]":
            if rest[0] == "\\" and len(rest) >= 2:
                found |= rest[1] == text[0]
                rest = rest[2:]
            elif len(rest) >= 3 and rest[1] == "-":
                low, high = sorted((rest[0], rest[2]))
                found |= low <= text[0] <= high
                rest = rest[3:]
            else:
                found |= rest[0] == text[0]
                rest = rest[1:]
        return found is not negated and matches(rest[1:], text[1:])
    if pattern[0] == "\\" and len(pattern) >= 2:
        pattern = pattern[1:]
    return pattern[0] == text[0] and matches(pattern[1:], text[1:])


def test_the_matcher_of_this_test_knows_patterns() -> None:
    assert matches("h[a-c]llo*", "hbllo world")
    assert matches("h[^e]?lo", "hallo")
    assert not matches("h[^a]llo", "hallo")
    assert matches(r"h\*llo", "h*llo")
    assert not matches(r"h\*llo", "hello")


@given(text=keys, other=keys)
def test_an_escaped_text_matches_itself_alone(text: str, other: str) -> None:
    assert matches(escape(text), text)
    assert matches(escape(text), other) is (text == other)


@pytest.mark.parametrize("character", "*?[]^\\-")
def test_every_character_with_a_meaning_is_escaped(character: str) -> None:
    assert escape(f"a{character}b") == f"a\\{character}b"


@given(template=templates, key=keys, other=keys)
@example(template="app[1]*:{key}", key="x", other="app1*:x")
def test_a_pattern_finds_its_names_and_hardly_others(template: str, key: str, other: str) -> None:
    parts = KeyTemplate(template)
    assert matches(parts.pattern, parts.name(key))
    assert matches(parts.pattern, other) is (parts.key_of(other) is not None)
