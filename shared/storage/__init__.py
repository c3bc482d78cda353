"""Files and buckets: whole or not at all, readable by their owner only."""
