"""A run from its configuration to its summary, in its work directory; what it needs, and what it has left."""
