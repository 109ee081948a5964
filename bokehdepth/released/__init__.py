"""The weights that the authors of BokehDepth released: reading, converting, running and auditing them."""
