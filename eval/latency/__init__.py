"""What the arms of an evaluation cost in time."""
