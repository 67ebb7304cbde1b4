"""How long tests wait for an answer that is to come."""

PATIENCE_S = 120.0
"""Longer than a server waits for anything (60 s in tests): how fast the machine is decides no test.

A client of httpx gives up after 5 s unless it is told.
"""
