"""Deciding: pure functions of events and time. No clock, sockets, files or randomness."""
