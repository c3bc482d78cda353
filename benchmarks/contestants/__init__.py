"""One script for each system of `benchmarks.peers`, each run by the interpreter in whose environment that system is."""
