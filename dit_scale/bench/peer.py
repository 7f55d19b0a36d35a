"""Another training code beside ours, on the same weights: a checkout laid out as facebookresearch/DiT is."""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_scale.bench.loop import CLASSES
from dit_scale.errors import InputError
from dit_scale.latents import LatentSpec

_MODULES = ("models", "diffusion")


class Peer:
    """A model and a diffusion of others, trained and sampled as their scripts do."""

    def __init__(
        self,
        path: Path,
        model_name: str,
        latent_size: int,
        num_classes: int,
        weights: dict[str, Tensor],
        device: str,
        precision: str,
    ):
        """Raises InputError where the folder is laid out otherwise."""
        self.name = path.resolve().name
        with _importable(path) as (models, diffusion):
            self._create_diffusion = diffusion.create_diffusion
            if model_name not in models.DiT_models:
                raise InputError(f"--peer-path '{path}' knows no model {model_name}; give one of its DiT_models")
            with torch.device(device):
                self.model = models.DiT_models[model_name](input_size=latent_size, num_classes=num_classes)
        self.model.load_state_dict(weights)
        self.model.to(device).train()
        self.ema = deepcopy(self.model).requires_grad_(False).eval()
        self._diffusion = self._create_diffusion(timestep_respacing="")
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0)
        self._device, self._uses_autocast = device, precision == "bf16"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as train.py sets them

    def step(self, latent: Tensor, label: Tensor) -> float:
        """Take a training step of latents [N, C, S, S]; return the mean loss."""
        loss = self._loss(latent, label)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._update_ema()
        return loss.item()

    def parts(self, latent: Tensor, label: Tensor) -> dict[str, Callable[[], object]]:
        """Return a step cut into what it consists of, to be called in this order."""

        def forward_and_backward() -> None:
            loss = self._loss(latent, label)
            self._optimizer.zero_grad()
            loss.backward()

        return {
            "forward and backward": forward_and_backward,
            "optimizer": self._optimizer.step,
            "EMA": self._update_ema,
        }

    @torch.no_grad()
    def sample(self, noise: Tensor, label: Tensor, null_label: int, num_steps: int, cfg_scale: float) -> Tensor:
        """Return latents [N, C, S, S] drawn by DDIM with guidance."""
        diffusion = self._create_diffusion(timestep_respacing=f"ddim{num_steps}")
        labels = torch.cat([label, torch.full_like(label, null_label)])
        self.model.eval()
        with self._autocast():
            drawn = diffusion.ddim_sample_loop(
                self.model.forward_with_cfg,
                (2 * len(noise), *noise.shape[1:]),
                torch.cat([noise, noise]),
                clip_denoised=False,
                model_kwargs={"y": labels, "cfg_scale": cfg_scale},
                progress=False,
                device=self._device,
            )
        self.model.train()
        return drawn.chunk(2)[0]

    def _loss(self, latent: Tensor, label: Tensor) -> Tensor:
        times = torch.randint(0, self._diffusion.num_timesteps, (len(latent),), device=latent.device)
        with self._autocast():
            return self._diffusion.training_losses(self.model, latent, times, {"y": label})["loss"].mean()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.partition(":")[0], torch.bfloat16, enabled=self._uses_autocast)

    @torch.no_grad()
    def _update_ema(self, decay: float = 0.9999) -> None:
        own = dict(self.model.named_parameters())
        for name, average in self.ema.named_parameters():
            average.mul_(decay).add_(own[name].data, alpha=1 - decay)


class PeerLoop:
    """A peer's training steps on one batch."""

    def __init__(self, peer: Peer, latent: Tensor, label: Tensor):
        self._peer, self._latent, self._label = peer, latent, label

    def step(self) -> float:
        """Take a step; return the mean loss, as the peer's own loop asks for it."""
        return self._peer.step(self._latent, self._label)

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return a step cut into what it consists of, to be called in this order."""
        return self._peer.parts(self._latent, self._label)


@dataclass(frozen=True)
class Peers:
    """The checkouts to measure beside ours; raises InputError where one is laid out otherwise."""

    paths: Sequence[Path]
    precision: str
    """``fp32``, or ``bf16`` by autocast."""

    def __post_init__(self) -> None:
        """Check at the door, before anything is measured."""
        for path in self.paths:
            _check_layout(path)

    def build(self, path: Path, model_name: str, latents: LatentSpec, weights: dict[str, Tensor], device: str) -> Peer:
        """Return one of them with our weights."""
        return Peer(path, model_name, latents.size, CLASSES, weights, device, self.precision)


def _check_layout(path: Path) -> None:
    """Raise InputError where a folder is not laid out as facebookresearch/DiT is."""
    if not (path / "models.py").is_file() or not (path / "diffusion").is_dir():
        raise InputError(
            f"--peer-path '{path}' holds no models.py and diffusion/; give a checkout of facebookresearch/DiT, of "
            f"fast-DiT, or benchmarks/plain"
        )


@contextmanager
def _importable(path: Path) -> Iterator[tuple[Any, Any]]:
    """Give a checkout's own modules, without leaving their general names in the way of others."""
    _check_layout(path)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in _MODULES}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(path))
    try:
        models, diffusion = (importlib.import_module(name) for name in _MODULES)
        yield models, diffusion
    except ImportError as error:
        raise InputError(f"--peer-path '{path}' needs a package that is not here ({error}); install it") from error
    finally:
        sys.path.remove(str(path))
        for name in [name for name in sys.modules if name.split(".")[0] in _MODULES]:
            del sys.modules[name]
        sys.modules.update(before)
