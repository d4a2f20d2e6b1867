"""Runs inside the job, one a session."""
