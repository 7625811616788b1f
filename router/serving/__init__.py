"""An OpenAI-compatible server for a routed model: requests of one chain generate together."""

import importlib.util

from router.validation import InputError

for _name in ("fastapi", "httpx", "prometheus_client", "uvicorn"):  # packages of the extra `serve`
    if importlib.util.find_spec(_name) is None:
        raise InputError(
            f"serve: expected {_name}, got an installation without it: pip install -c constraints.txt -e '.[serve]'"
        )
