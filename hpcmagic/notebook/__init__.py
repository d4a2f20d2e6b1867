"""Runs in the user's kernel."""
