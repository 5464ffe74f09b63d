"""The document keeps every value's text and line, and takes the environment's."""

import pytest

from gateway.document import Listing, Mistake, Node, Scalar, Table, overridden, parse

SECTIONS = ("limits", "models", "data_dir")


def at(node: Node, *steps: str | int) -> Node:
    for step in steps:
        if isinstance(step, int):
            assert isinstance(node, Listing)
            node = node.items[step]
        else:
            assert isinstance(node, Table)
            node = node.entries[step]
    return node


def text_at(node: Node, *steps: str | int) -> str:
    found = at(node, *steps)
    assert isinstance(found, Scalar)
    return found.text


def document(text: str) -> Node:
    root, mistakes = parse(text)
    assert mistakes == []
    return root


def test_a_value_keeps_the_text_it_was_written_as() -> None:
    root = document("a: 4.10\nb: no\nc: 0o17\nd: 1:30\ne: 2026-01-01")
    assert [text_at(root, key) for key in "abcde"] == ["4.10", "no", "0o17", "1:30", "2026-01-01"]


def test_a_value_knows_its_line() -> None:
    root = document("a:\n  b:\n    - x\n    - y\n")
    assert isinstance(root, Table)
    assert root.line_of("a") == 1
    second = at(root, "a", "b", 1)
    assert second.line == 4


def test_an_empty_file_is_an_empty_document() -> None:
    assert document("# nothing but a comment\n") == Table({})


def test_a_key_that_stands_twice_is_a_mistake_on_its_second_line() -> None:
    _, mistakes = parse("a: 1\nb: 2\na: 3\n")
    assert mistakes == [Mistake(3, "", "'a' stands here again; it is already on line 1")]


def test_a_text_that_is_no_yaml_is_one_mistake_that_does_not_repeat_it() -> None:
    _, [mistake] = parse("a: 1\nkey: 'sk-canary-1234\n")
    assert mistake.line > 0
    assert "canary" not in str(mistake)


@pytest.mark.parametrize(
    "text", ["a: \x00", "a: \x07", "a: !!python/name:os.system x", "? [a]\n: b"]
)
def test_odd_documents_are_mistakes_or_texts_but_never_run_anything(text: str) -> None:
    root, mistakes = parse(text)
    assert mistakes or text_at(root, "a") == "x"


def test_an_anchor_that_contains_itself_ends() -> None:
    _, mistakes = parse("a: &a [*a]\n")
    assert "contains itself" in str(mistakes)


def test_aliases_of_aliases_are_read_once() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 40)]
    document("\n".join(lines))  # 10^39 values, if they were copied


def test_a_variable_sets_the_value_its_name_spells() -> None:
    root = document("limits: {body_bytes_max: 5}\n")
    root = overridden(root, {"TOLLGATE_LIMITS__BODY_BYTES_MAX": "7"}, sections=SECTIONS)
    assert text_at(root, "limits", "body_bytes_max") == "7"


def test_a_variable_is_found_whatever_its_case() -> None:
    root = overridden(Table({}), {"Tollgate_Limits__Headers_Max": "7"}, sections=SECTIONS)
    assert text_at(root, "limits", "headers_max") == "7"


def test_a_variable_reaches_names_with_dots_dashes_and_slashes() -> None:
    root = document("models: {openai/gpt-4.1: {context_tokens: 1}}\n")
    variable = {"TOLLGATE_MODELS__OPENAI_GPT_4_1__CONTEXT_TOKENS": "9"}
    root = overridden(root, variable, sections=SECTIONS)
    assert text_at(root, "models", "openai/gpt-4.1", "context_tokens") == "9"


def test_a_variable_reaches_into_a_list() -> None:
    root = document("models: [a, b]\n")
    root = overridden(root, {"TOLLGATE_MODELS__1": "c"}, sections=SECTIONS)
    assert [text_at(root, "models", place) for place in (0, 1)] == ["a", "c"]


def test_a_variable_beyond_the_end_of_a_list_adds_to_it() -> None:
    root = document("models: [a, b]\n")
    root = overridden(root, {"TOLLGATE_MODELS__99": "c"}, sections=SECTIONS)
    assert [text_at(root, "models", place) for place in (0, 1, 2)] == ["a", "b", "c"]


def test_an_override_of_an_alias_changes_no_other_place() -> None:
    root = document("limits: &x {a: 1}\nmodels: *x\n")
    root = overridden(root, {"TOLLGATE_LIMITS__A": "2"}, sections=SECTIONS)
    assert (text_at(root, "limits", "a"), text_at(root, "models", "a")) == ("2", "1")


def test_the_variables_of_kubernetes_for_a_service_called_tollgate_mean_nothing() -> None:
    variables = {
        "TOLLGATE_PORT": "tcp://10.0.0.1:8080",
        "TOLLGATE_SERVICE_HOST": "10.0.0.1",
        "TOLLGATE_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert overridden(Table({}), variables, sections=SECTIONS) == Table({})


def test_a_variable_without_a_section_sets_a_setting_of_the_top() -> None:
    root = overridden(Table({}), {"TOLLGATE_DATA_DIR": "/srv"}, sections=SECTIONS)
    assert text_at(root, "data_dir") == "/srv"
