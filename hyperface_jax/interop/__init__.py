"""Weights of other programs: their files, their names, and back. Without torch."""
