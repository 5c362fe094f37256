"""How good models are, measured on data that streams past: similarity of pictures, distances of distributions."""
