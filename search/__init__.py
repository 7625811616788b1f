"""Monte-Carlo tree search over chains of layers; `python -m search`."""
