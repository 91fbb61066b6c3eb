"""Image stores for tests that are no real servers."""
