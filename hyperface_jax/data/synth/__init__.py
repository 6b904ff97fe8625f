"""Procedural face renderer: labelled faces of people who do not exist."""
