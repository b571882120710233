"""Per-sample gradients layer by layer: what a layer read, and the gradient at its output, are all they need.

``capture`` watches every call of a model that uses one of its parameters; a rule for each layer family (``linear``,
``convolution``, ``embedding``, ``normalisation``) turns the layer's input and the gradient at its output into a *form*
(``forms``), the gradients of all samples before they are multiplied out, from which norms and sums follow. ``probe``
finds out on two samples where the batch lies and whether samples stay apart; ``functional`` is the way round through
``torch.func`` for what no rule covers.
"""
