"""Controls of the oracle."""
