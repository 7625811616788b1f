"""What `python -m router` does, a module for each word."""
