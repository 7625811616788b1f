"""Training of the router on Lightning; `python -m train`."""
