"""Training of the router on Lightning; `python -m train`."""

import router  # noqa: F401  before torch: how its threads wait
