"""Where entries go: one Redis server, the primary that sentinels know, or a Redis Cluster."""
