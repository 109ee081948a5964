"""Defocus of a picture by its depth: disks, apertures, scatter, refocusing, layers. No torch import."""
