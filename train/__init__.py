"""Training and evaluation of both stages; run the modules with `python -m train.<name>`."""
