"""Programs and graphs for tests, all without faults."""
