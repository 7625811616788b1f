"""Monte-Carlo tree search over chains of layers; `python -m search`."""

import router  # noqa: F401  before torch: how its threads wait
