"""SYSTHEBOKEH300: foregrounds before backgrounds, ray-traced at three apertures (section 11 of the paper)."""
