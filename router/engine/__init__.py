"""How a frozen model runs chains: loading, chain views, the batched executor, choices and replay."""
