"""Whole processes under load, faults and hostility; each scenario prints a line with its figure.

A line begins with the kind of trouble that it rules out, and a number within the kind: A metering,
B admission, C the way to Postgres, D streams and connections, E keys, F secrets and hostile input,
G operations, T the long test programme.
"""
