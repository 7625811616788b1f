"""An OpenAI-compatible server for a routed model: requests of one chain generate together."""
