"""Runs as every rank."""
