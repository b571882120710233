"""What fastmem rewind costs, and its figures made small enough to commit."""
