"""`zerograd plan`: what a model needs in memory, and what fits."""
