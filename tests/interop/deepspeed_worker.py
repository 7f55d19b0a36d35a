"""Checkpoints as DeepSpeed's own trainers save them, in folders FOLDER/zero-STAGE of the golden weights.

    deepspeed_worker FOLDER STAGE…

In bf16 but for stage 0. The learning rate is 0, so that the weights stay as they are.
"""

import sys
from pathlib import Path

import deepspeed
import torch

from dit_scale.distributed.runtime import World, process_group
from tests.parity import load_tiny


def main() -> None:
    folder, *stages = sys.argv[1:]
    with process_group(World.from_environment(), "cpu"):
        for stage in map(int, stages):
            model = load_tiny("tiny_a").model.train()
            adam = {"type": "Adam", "params": {"torch_adam": True, "lr": 0.0}}
            settings = {
                "train_micro_batch_size_per_gpu": 1,
                "optimizer": adam,
                "zero_optimization": {"stage": stage},
                "bf16": {"enabled": stage > 0},
            }
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=settings)
            latent = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16 if stage else torch.float32)
            engine.backward(engine(latent, torch.tensor([3]), torch.tensor([1])).float().square().mean())
            engine.step()
            engine.save_checkpoint(str(Path(folder) / f"zero-{stage}"))


if __name__ == "__main__":
    main()
