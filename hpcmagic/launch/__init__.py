"""Talks to the batch system, from the kernel's side."""
