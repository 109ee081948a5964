"""Defocus rendering and the procedural scenes that are trained on."""
