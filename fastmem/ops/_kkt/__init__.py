"""What the implementations of ``kkt_residual`` share: the prepared network and the problem that they are handed."""
