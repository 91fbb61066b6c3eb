"""The bench: the product against its peers, on the same server and data. `make bench` runs it."""
