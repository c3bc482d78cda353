"""Files and buckets. A file is written completely or not at all, and only its owner may read it."""
