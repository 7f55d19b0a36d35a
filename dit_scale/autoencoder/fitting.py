"""How the fitted codec learns: squared error of the pixels, by Muon, in as many steps as it is given."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from dit_scale.autoencoder.base import fixed_threads, from_uint8
from dit_scale.autoencoder.patches import PatchNetwork
from dit_scale.progress import passed_on

BATCH_IMAGES = 32
_PARTS = 4
"""Parts of a batch, each computed by one thread: so the weights do not depend on the number of cores."""
_CROP_PATCHES = 8
"""Side of what is looked at of a larger image, so that the time does not depend on the images' size."""
_MUON_RATE, _ADAM_RATE, _WARMUP_STEPS, _MOMENTUM = 0.02, 2.0e-3, 20, 0.9
_NOISE = 0.1
"""Deviation of the noise on latents of rms 1: a latent that a model draws is never exact, and must decode, too."""
_CLOSENESS = 0.01
"""Weight of the latents' squared distance from the linear codec's, which are smooth: models learn these more easily."""


def fit_network(network: PatchNetwork, images: Tensor, steps: int, generator: torch.Generator) -> None:
    """Fit the network to uint8 images [N, 3, S, S], BATCH_IMAGES at least; all draws come from the generator."""
    parameters = list(network.parameters())
    muon = _Muon([p for p in parameters if _is_matrix(p)])
    adam = torch.optim.Adam([p for p in parameters if not _is_matrix(p)], betas=(0.9, 0.99))
    batches = _batches(images, network.patch_size, generator)
    threads = min(_PARTS, len(os.sched_getaffinity(0)))
    with fixed_threads(1), ThreadPoolExecutor(threads, "fit", torch.set_num_threads, (1,)) as pool:
        for step in passed_on("autoencoder", range(steps), steps, "steps"):
            pixels = from_uint8(next(batches))  # [B, 3, s, s]
            parts = [
                (network, part, _noise(network, part, generator), len(part) / len(pixels))
                for part in pixels.chunk(_PARTS)
            ]
            gradients = list(pool.map(_gradients, parts))
            for parameter, *shares in zip(parameters, *gradients, strict=True):
                parameter.grad = torch.stack(shares).sum(0)
            rate = min(1.0, (step + 1) / _WARMUP_STEPS) * (1.0 - step / steps)
            adam.param_groups[0]["lr"] = _ADAM_RATE * rate
            adam.step()
            muon.step(_MUON_RATE * rate, pool)


def _gradients(part: tuple[PatchNetwork, Tensor, Tensor, float]) -> tuple[Tensor, ...]:
    """Return what a part of a batch, this share of it, adds to the gradients of the batch's mean loss."""
    network, pixels, noise, share = part
    linear, added = network.encode_apart(pixels)  # [B / parts, C, h, w] each
    error = network.decode(linear + added + noise) - pixels  # [B / parts, 3, s, s]
    loss = error.square().mean() + _CLOSENESS * added.square().mean()
    return torch.autograd.grad(share * loss, list(network.parameters()))


def _noise(network: PatchNetwork, pixels: Tensor, generator: torch.Generator) -> Tensor:
    side = pixels.shape[-1] // network.patch_size
    return _NOISE * torch.randn(len(pixels), network.channels, side, side, generator=generator)  # [N, C, h, w]


def _batches(images: Tensor, patch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield whole batches without end, an image at most once a pass; of larger images a part that is drawn."""
    size = images.shape[-1]
    side = min(size, _CROP_PATCHES * patch_size)
    choices = (size - side) // patch_size + 1
    while True:
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: len(order) // BATCH_IMAGES * BATCH_IMAGES].split(BATCH_IMAGES):
            top, left = (patch_size * torch.randint(choices, (2,), generator=generator)).tolist()
            yield images[chosen, :, top : top + side, left : left + side]


def _is_matrix(parameter: Tensor) -> bool:
    """Whether Muon updates a parameter: matrices and whole convolutions, not biases and kernels of single channels."""
    return parameter.ndim > 1 and parameter.shape[1] > 1


class _Muon:
    """Muon (Jordan et al., kellerjordan.github.io/posts/muon) in fp32; PyTorch's uses bf16, which many CPUs emulate."""

    def __init__(self, matrices: list[nn.Parameter]):
        self._momenta = [(matrix, torch.zeros_like(matrix)) for matrix in matrices]

    def step(self, rate: float, pool: ThreadPoolExecutor) -> None:
        """Update every matrix, each by one thread."""
        list(pool.map(lambda pair: self._update(pair[0], pair[1], rate), self._momenta))

    @torch.no_grad()
    def _update(self, matrix: nn.Parameter, momentum: Tensor, rate: float) -> None:
        """Update a matrix, or a convolution's kernel as one of [D_out, D_in * 9]."""
        assert matrix.grad is not None
        momentum.mul_(_MOMENTUM).add_(matrix.grad)
        update = (matrix.grad + _MOMENTUM * momentum).flatten(1)
        rows, columns = update.shape
        update = _orthogonal(update) * max(1.0, rows / columns) ** 0.5
        matrix.sub_(update.view_as(matrix), alpha=rate)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix with orthonormal rows or columns: five Newton-Schulz steps, as in Muon's post."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
