"""Decisions: pure machines that know no IO, no clock and no randomness."""
