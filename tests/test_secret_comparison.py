"""Secrets are compared in constant time, or looked up by their digest: nothing else tells how much
of a guess was right by how long the answer takes.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TREES = ("gateway", "providers", "ledger")

_SECRETS = {
    *("bearer", "cookie", "csrf", "hmac", "mac", "otp", "password", "pepper"),
    *("secret", "signature", "token", "tokens"),
}
_WORDS = re.compile(r"[A-Za-z][a-z]*|[0-9]+")
# A secret that Postgres itself would compare, byte by byte; digests may be, they tell nothing.
_SQL = re.compile(
    r"\bWHERE\b.*?\b(\w*(?:secret|password|otp)\w*|token|sealed)\s*=\s*\$\d", re.DOTALL
)
_HARMLESS = (ast.Is, ast.IsNot, ast.Lt, ast.LtE, ast.Gt, ast.GtE)  # of identity and of size

# Compared as it is all the same: why nobody learns anything by it. Shrinks.
ALLOWED: dict[str, str] = {
    "secret in packed": "our own log line is searched for our own secrets",
    "WHERE id = $1 AND otp_since IS NULL AND otp_secret = $4": "as sealed, with what was read",
}


def _named(node: ast.expr) -> str:
    """The name that something is called by, wherever it is taken from; "" if it has none."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case ast.Call(func=ast.Attribute(attr="reveal" | "encode" | "strip", value=inner)):
            return _named(inner) or "secret"
        case ast.Call(func=function):
            return _named(function)
        case _:
            return ""


def _is_secret(node: ast.expr) -> bool:
    name = _named(node)
    if not name or name == name.upper():  # a constant is in the source for everybody to read
        return False
    words = _WORDS.findall(name)
    return bool(words) and words[-1].lower() in _SECRETS  # a token_url is none


def breaches(source: str) -> Iterator[tuple[int, str]]:
    """The lines that compare a secret as other text is compared."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(node.ops, sides, sides[1:], strict=False)
            if any(
                not isinstance(how, _HARMLESS) and (_is_secret(one) or _is_secret(other))
                for how, one, other in pairs
            ):
                yield node.lineno, ast.unparse(node)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and (found := _SQL.search(node.value))
        ):
            yield node.lineno, found[0]


def test_no_secret_is_compared_in_a_time_that_tells_of_it() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for tree in TREES
        for path in sorted((ROOT / tree).rglob("*.py"))
        for line, text in breaches(path.read_text())
        if text not in ALLOWED
    ]
    advice = "use hmac.compare_digest, or store a digest and look that up:"
    assert not found, "\n  ".join([advice, *found])


@pytest.mark.parametrize(
    "source",
    [
        "if token == wanted: pass",
        "is_good = given != self._csrf_token",
        "if row['password'] == password: pass",
        "if text in tokens: pass",
        "if config.metrics.token.reveal() == given: pass",
        "if signature.strip() == expected: pass",
        "_ONE = 'SELECT id FROM token WHERE secret = $1'",
        "_ONE = 'SELECT id FROM person WHERE id = $1 AND otp_secret = $2'",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert [*breaches(source)], source


@pytest.mark.parametrize(
    "source",
    [
        "if hmac.compare_digest(token, wanted): pass",
        "if token is None: pass",
        "if kind == _DIGEST: pass",
        "if role == wanted: pass",
        "if 'basic' in metadata.token_methods: pass",
        "_SET = 'UPDATE person SET password = $2 WHERE id = $1'",
        "_ONE = 'SELECT id FROM session WHERE digest = $1'",
    ],
)
def test_the_search_passes_over(source: str) -> None:
    assert not [*breaches(source)], source
