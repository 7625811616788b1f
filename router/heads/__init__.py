"""Router heads: states in, chains with scores out."""
