"""What searches found, laid side by side: the tables of the published kind."""
