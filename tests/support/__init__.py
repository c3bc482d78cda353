"""What tests share: small models and batches, programs as processes, a browser, golden files."""
