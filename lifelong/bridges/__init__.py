"""Strategies of other frameworks."""
