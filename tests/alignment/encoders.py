"""Small encoders with random weights in local folders, and images for them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "siglip", "vit_mae")
WIDTH = 24


def save_encoder(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """Write a small encoder of transformers, no weight of which is zero, into a folder; return it."""
    import transformers

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    registers = {"num_register_tokens": 3}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "dinov2":
            config = transformers.Dinov2Config(image_size=98, patch_size=14, **sizes | changes)
            network = transformers.Dinov2Model(config)
        elif kind == "dinov2_with_registers":
            config = transformers.Dinov2WithRegistersConfig(image_size=98, patch_size=14, **registers, **sizes)
            network = transformers.Dinov2WithRegistersModel(config)
        elif kind == "dinov3_vit":
            network = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(patch_size=16, **registers, **sizes))
        elif kind == "siglip":
            vision = {"image_size": 96, "patch_size": 16} | sizes
            network = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
        else:
            decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
            config = transformers.ViTMAEConfig(image_size=96, patch_size=16, **decoder, **sizes)
            network = transformers.ViTMAEForPreTraining(config)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    return network.eval()


def crops(count: int = 2, side: int = 64) -> Tensor:
    """Return images, uint8 [N, 3, S, S]."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
