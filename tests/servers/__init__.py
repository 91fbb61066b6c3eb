"""Starts the real servers that tests and the demo speak to, on free loopback ports, with nothing under /etc."""
