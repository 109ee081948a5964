"""Builders of data sets; each module is a command."""
