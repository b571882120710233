"""The gradient of every sample's own loss, for every parameter.

What a layer read and the gradient at its output determine the gradient of each sample (Goodfellow 2015,
arXiv:1510.01799; for convolutions Rochette et al. 2019, arXiv:1912.06015), so one forward and one backward pass give
all of them. Models with parts that no layer rule covers go through ``torch.func.vmap(grad)``, with the same result.

Roof: as many operations as the weight gradients of one backward pass, and ``4 B P`` bytes written for P float32
parameters; :func:`fastmem.grad_stats` computes what follows from the gradients without writing them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastmem.ops._layers.capture import NotCoveredError
from fastmem.ops._layers.forms import Form
from fastmem.ops._layers.functional import Functional
from fastmem.ops._layers.step import LossFn, Step
from fastmem.ops._registry import Explanation, current_setting

__all__ = ["explanation", "per_sample_grads"]


def per_sample_grads(model: nn.Module, loss_fn: LossFn, inputs: Any, targets: Any) -> dict[str, Tensor]:
    """Gradients of every sample's loss with respect to every trainable parameter.

    Linear layers (on rows or sequences), convolutions in one and two dimensions, embeddings, layer, RMS, group and
    instance normalisation, batch normalisation in eval mode, multi-head attention, and parameters used more than once
    are computed from one forward and one backward pass. Whatever else a model does with a parameter sends it through
    ``torch.func``, or through a backward pass a sample where that cannot map it; ``explain("per_sample_grads", model,
    loss_fn, inputs, targets)`` says which way is taken and why. The result is the same.

    Two samples of the batch go through the model first, the loss of one of them differentiated alone. This shows where
    in every layer the batch lies, and that the gradient does not reach another sample; the state of the random number
    generator and the model's buffers are as before.

    Args:
        model: Its trainable parameters are asked about; frozen ones are left out. Its mode is kept: dropout stays on in
            training mode.
        loss_fn: ``loss_fn(outputs, targets)`` returns one loss a sample, [B]: for example
            ``functools.partial(F.cross_entropy, reduction="none")``.
        inputs: A tensor, or a tuple of the model's positional arguments; every tensor has the batch first.
        targets: Passed to ``loss_fn``; every tensor has the batch first.

    Returns:
        ``[B, *param.shape]`` by parameter name, in the parameters' dtypes; zero where a parameter has no part in a
        sample's loss. A parameter known by two names is listed under its first.

    Raises:
        InputError: The model has no trainable parameter or normalises by batch statistics; batch sizes differ; the
            loss is reduced over the batch; or the gradient of one sample's loss reaches another sample.
    """
    step = Step.checked(model, loss_fn, inputs, targets)
    found = {name: parameter.new_zeros((step.batch, *parameter.shape)) for name, parameter in step.parameters.items()}
    if step.batch == 0:
        return found
    plan = step.plan()
    if not isinstance(plan, str):

        def keep(name: str, form: Form) -> None:  # (frees each form as soon as it is multiplied out)
            found[name] = form.grads(0, form.batch).to(found[name].dtype)

        try:
            step.by_layers(plan, keep)
        except NotCoveredError:
            pass
        else:
            return found
    functional = step.functional()
    for start, gradients in functional.chunks():
        for name, gradient in gradients.items():
            found[name][start : start + len(gradient)] = gradient
    return found


def explanation(*args: Any, **kwargs: Any) -> Explanation:
    """What ``explain("per_sample_grads", model, loss_fn, inputs, targets)`` shows (``grad_stats`` takes the same way).

    Without arguments, what the ways are.
    """
    remarks = {
        "layers": "rules for linear, conv1d, conv2d, embedding, normalisation and attention; one backward pass",
        "torch.func": "vmap(grad) for models with anything else",
        "loop": "a backward pass a sample, where torch.func cannot map the model",
    }
    if not args and not kwargs:
        return Explanation("per_sample_grads", current_setting(), "", None, remarks)
    arguments = dict(zip(("model", "loss_fn", "inputs", "targets"), args, strict=False)) | kwargs
    step = Step.checked(*(arguments[name] for name in ("model", "loss_fn", "inputs", "targets")))
    plan = step.plan() if step.batch else "the batch is empty"
    chosen = _chosen(step, plan, remarks)
    words = f"{type(step.model).__name__}, {step.batch} samples, {len(step.parameters)} parameters"
    return Explanation("per_sample_grads", current_setting(), words, chosen, remarks)


def _chosen(step: Step, plan: Any, remarks: dict[str, str]) -> str:
    if not isinstance(plan, str):
        remarks["layers"] = f"runs: {len(plan.calls)} calls, all covered"
        remarks["torch.func"] = remarks["loop"] = "not needed"
        return "layers"
    remarks["layers"] = f"does not take this model: {plan}"
    functional: Functional = step.functional()
    if functional.why_not_mapped is None:
        remarks["torch.func"], remarks["loop"] = "runs", "not needed"
        return "torch.func"
    remarks["torch.func"], remarks["loop"] = functional.why_not_mapped, "runs: one backward pass a sample"
    return "loop"
