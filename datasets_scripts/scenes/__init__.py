"""Procedural scenes with metric depth, and what they are made of."""
