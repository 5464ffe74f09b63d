"""A collapsed profile is read as shares of each function."""

from benchmarks.profile import Share, shares

_COLLAPSED = """\
thread (1): "MainThread";main (a/b/app.py:1);serve (a/b/calls.py:10);write (libc.so.6) 3
thread (1): "MainThread";main (a/b/app.py:1);serve (a/b/calls.py:12) 1
thread (2): "log";drain (a/b/logs.py:12) 40
"""


def test_a_function_has_its_own_time_and_that_of_what_it_called() -> None:
    found = {share.function: share for share in shares(_COLLAPSED)}

    assert found["libc.so.6:write"] == Share("libc.so.6:write", 0.75, 0.75)
    assert found["calls.py:serve"] == Share("calls.py:serve", 0.25, 1.0)
    assert "app.py:main" not in found  # it never ran by itself
