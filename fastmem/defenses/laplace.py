"""Last-layer Laplace approximation (Kristiadi, Hein and Hennig 2020, arXiv:2002.10118), by the laplace-torch package.

The last layer's weights get a Gaussian posterior around their trained values, with Kronecker factors of the Gauss-Newton
matrix of the training records and an isotropic prior. A record far from them gets a large variance of its logits, and
the model says that it does not know. Predictions use the probit approximation, which is exact arithmetic: the sampled
form of Hintersdorf et al. (2022) draws anew for each query, and gives one record several scores.

The prior's variance is chosen as they do, by cross-entropy on held-out records plus a quarter of the mean ``-log p`` on
noise images, but on records that are not evaluated afterwards.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastmem.compat import import_torchvision
from fastmem.errors import InputError

__all__ = ["LastLayerLaplace", "require_linear_output", "require_package"]

# logspace(0, 3) as published, coarser: the objective is flat around its minimum.
_VARIANCES = np.logspace(0, 3, 16)
_NOISE_WEIGHT = 0.25
_BATCH = 256


class LastLayerLaplace:
    """A trained classifier that is less sure of what is unlike its training records.

    Args:
        model: A classifier whose last module is ``nn.Linear``; put in eval mode, otherwise unchanged.
        input_shape: Shape of one sample.

    Raises:
        InputError: If laplace-torch is not installed, or the model does not end in a linear layer.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        laplace = require_package()
        self._model = model.eval()
        name = require_linear_output(model, input_shape)
        self._laplace: Any = laplace.Laplace(
            model,
            "classification",
            subset_of_weights="last_layer",
            hessian_structure="kron",
            last_layer_name=name,
        )
        self._fitted = False

    def fit(self, x: Tensor, y: Tensor, held_out: tuple[Tensor, Tensor], noise: Tensor) -> LastLayerLaplace:
        """Fits the posterior and chooses the prior.

        Args:
            x: Inputs of the training records [N, ...], as the network sees them.
            y: Their labels, int64 [N].
            held_out: Inputs and labels of records that neither train nor are evaluated.
            noise: Inputs that the model should not be sure of.

        Returns:
            Itself.
        """
        with _quiet():
            self._laplace.fit(DataLoader(TensorDataset(x, y), batch_size=_BATCH))
            known, strange = list(self._features(held_out[0])), list(self._features(noise))
            objective = []
            for variance in _VARIANCES:
                self._laplace.prior_precision = float(1 / variance)
                log_p = torch.cat([self._damped(*part) for part in known]).double().log_softmax(dim=1)
                log_q = torch.cat([self._damped(*part) for part in strange]).double().log_softmax(dim=1)
                loss = torch.nn.functional.nll_loss(log_p, held_out[1])
                objective.append(float(loss - _NOISE_WEIGHT * log_q.mean()))
        self._laplace.prior_precision = float(1 / _VARIANCES[int(np.argmin(objective))])
        self._fitted = True
        return self

    @property
    def prior_variance(self) -> float:
        """The variance chosen."""
        return 1 / float(self._laplace.prior_precision)

    def logits(self, x: Tensor) -> Tensor:
        """Logits whose softmax is the probit approximation: ``h / sqrt(1 + pi/8 var h)``, each class by its variance.

        Args:
            x: Inputs [B, ...].

        Returns:
            [B, C]; the same for the same record, whatever else is in the batch.

        Raises:
            InputError: Before :meth:`fit`.
        """
        if not self._fitted:
            raise InputError("laplace", "it is not fitted", "call fit first")
        with _quiet():
            return torch.cat([self._damped(*part) for part in self._features(x)])

    def _features(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What the last layer reads, and its logits, batch by batch."""
        with torch.no_grad():
            for batch in x.split(_BATCH):
                logits, features = self._laplace.model.forward_with_features(batch)
                yield features, logits

    def _damped(self, features: Tensor, logits: Tensor) -> Tensor:
        return logits / torch.sqrt(1 + math.pi / 8 * self._variance(features))

    def _variance(self, features: Tensor) -> Tensor:
        """Variance of each logit [B, C]: the diagonal of the package's ``functional_variance``, without the Jacobians.

        In the eigenbases of the factors (U, mu of the outputs; V, lambda of the inputs; W, nu of the bias)

            var_c = sum_k U_ck^2 sum_i (V' phi)_i^2 / (mu_k lambda_i + tau)  +  sum_k W_ck^2 / (nu_k + tau)
        """
        posterior = self._laplace.posterior_precision
        (of_outputs, of_inputs), *bias = posterior.eigenvectors
        (mu, lam), *nu = posterior.eigenvalues
        projected = (features @ of_inputs).square()
        variance = projected @ (1 / (torch.outer(lam, mu) + posterior.deltas[0])) @ of_outputs.square().T
        if bias:
            variance = variance + bias[0][0].square() @ (1 / (nu[0][0] + posterior.deltas[1]))
        return variance


def require_linear_output(model: nn.Module, input_shape: Sequence[int]) -> str:
    """The name of the linear layer whose output is the model's.

    Raises:
        InputError: If there is none: what comes last, or the layer's output is changed afterwards.
    """
    made: dict[str, Any] = {}
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: made.__setitem__(name, output))
        for name, module in leaves.items()
    ]
    training = model.training
    try:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with torch.no_grad():
            output = model.eval()(torch.zeros(2, *input_shape, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    last = next((name for name, value in reversed(made.items()) if value is output), None)
    if last is None or type(leaves[last]) is not nn.Linear:
        found = f"ends in {type(leaves[last]).__name__}" if last is not None else "changes the output of its last layer"
        raise InputError(
            "calibrations",
            f"laplace, but {type(model).__name__} {found}",
            "it needs a network whose last module is nn.Linear; leave laplace out",
        )
    return last


def require_package() -> Any:
    """The ``laplace`` package.

    Raises:
        InputError: If it is not installed, or does not import.
    """
    try:
        import_torchvision()  # torchmetrics, which laplace imports, needs it mended first
        import laplace
    except (ImportError, RuntimeError) as error:
        raise InputError(
            "calibrations", f"laplace needs the laplace-torch package ({error})", "pip install 'fastmem[laplace]'"
        ) from error
    return laplace


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """laplace-torch and curvlinops remark on their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
