"""One program that runs methods on photos and scores what they give: `python -m train.evaluation --help`."""
