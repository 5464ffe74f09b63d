"""Errors of the management API are documents of RFC 9457."""

import orjson

from gateway.errors import Forbidden, NotFound
from gateway.rest.problem import ChangedMeanwhile, problem_of


def test_a_problem_has_its_five_members_and_what_a_program_wants_to_know() -> None:
    error = Forbidden("No.", code="not_permitted", extra={"permission": "key.create"})
    said = orjson.loads(problem_of(error))
    assert said == {
        "type": "about:tollgate#not_permitted",
        "title": "Not allowed",
        "status": 403,
        "detail": "No.",
        "code": "not_permitted",
        "param": None,
        "permission": "key.create",
    }


def test_who_was_too_late_is_told_what_to_do() -> None:
    said = orjson.loads(problem_of(ChangedMeanwhile()))
    assert (said["status"], "Read it again" in said["detail"]) == (412, True)


def test_a_secret_is_not_repeated() -> None:
    error = NotFound("There is no tg_pat_abc123 here.", code="not_found")
    assert orjson.loads(problem_of(error))["detail"] == "There is no [secret] here."
