"""Where entries go: Redis, standalone or behind one address (Sentinel and Cluster come with a later step)."""
