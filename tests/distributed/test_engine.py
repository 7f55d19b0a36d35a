"""Batch arithmetic, and what DeepSpeed gets wrong is refused at the door."""

import pytest

from dit_scale.config import EngineConfig, TrainSection
from dit_scale.distributed.runtime import World
from dit_scale.errors import InputError
from dit_scale.models import DiT
from dit_scale.zero import engine as engine_module
from dit_scale.zero.batches import plan_batches
from dit_scale.zero.engine import build_engine, deepspeed_config

NODE, NODES = World(world_size=8, local_world_size=8), World(world_size=16, local_world_size=8)


@pytest.mark.parametrize(("size", "micro", "world"), [(256, 32, 8), (12, 5, 1), (7, 2, 1), (8, 100, 4)])
def test_micro_batches_cover_a_ranks_batch_and_stay_below_the_maximum(size: int, micro: int, world: int) -> None:
    plan = plan_batches(TrainSection(global_batch_size=size, micro_batch_size_per_gpu=micro), world)
    images = [index for part in plan.micro_batches for index in range(size // world)[part]]
    assert images == list(range(size // world))
    assert all(0 < part.stop - part.start <= micro for part in plan.micro_batches)
    assert len(plan.micro_batches) == plan.gradient_accumulation_steps == -(-size // world // micro)


def test_ranks_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(InputError, match=r"global_batch_size=256 does not divide over 3 ranks; use a multiple of 3"):
        plan_batches(TrainSection(global_batch_size=256), 3)


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        (EngineConfig(zero_stage=0, precision="bf16"), "wrong Adam step; use engine.zero_stage=1"),
        (EngineConfig(zero_stage=0, precision="fp32", offload_optimizer=True), "give engine.zero_stage=1, 2 or 3"),
        (EngineConfig(activation_budget=0.5), "give engine.compile=true"),
        (EngineConfig(hierarchical_partitioning=True), "give engine.zero_stage=3"),
    ],
)
def test_what_deepspeed_gets_wrong_is_refused(engine: EngineConfig, sentence: str) -> None:
    model = DiT(latent_size=4, patch_size=2, hidden_size=8, depth=1, num_heads=1, num_classes=2)
    train = TrainSection(global_batch_size=2)
    with pytest.raises(InputError, match=sentence):
        build_engine(model, engine, train, plan_batches(train, 1), World(), "cpu")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_knows_every_key_that_we_write(stage: int) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = deepspeed_config(
        EngineConfig(zero_stage=stage, offload_optimizer=stage > 0, hierarchical_partitioning=stage == 3),
        plan_batches(TrainSection(global_batch_size=4), 1),
        World(),
        num_parameters=1000,
        overlaps=True,
    )
    assert config["zero_optimization"].get("overlap_comm", False) is (stage > 0)
    unknown = (
        config["zero_optimization"].keys()
        - DeepSpeedZeroConfig.model_fields.keys()
        - {field.alias for field in DeepSpeedZeroConfig.model_fields.values()}
    )
    assert not unknown


@pytest.mark.parametrize(
    ("parameters", "ranks", "bucket", "to_owners"),
    [
        (30_000_000, 1, 8_000_000, True),
        (675_000_000, 8, 67_500_000, True),
        (675_000_000, 512, 72_000_000, False),  # a call on 512 ranks is to send so much; their parts are small
        (7_000_000_000, 64, 200_000_000, True),
        (1000, 2, 1000, False),
    ],
)
def test_buckets_and_where_gradients_go_follow_model_and_ranks(
    parameters: int, ranks: int, bucket: int, to_owners: bool
) -> None:
    engine = EngineConfig()
    assert engine.bucket_for(parameters, ranks) == bucket
    assert engine.reduces_to_owners(parameters, ranks) is to_owners
    asked = EngineConfig(bucket_elements=5, reduce_to_owners=not to_owners)
    assert (asked.bucket_for(parameters, ranks), asked.reduces_to_owners(parameters, ranks)) == (5, not to_owners)


@pytest.mark.parametrize(
    ("settings", "world", "device", "overlaps"),
    [
        ({}, World(), "cuda:0", False),  # nothing is reduced
        ({}, NODES, "cpu", False),
        ({}, NODES, "cuda:0", True),
        ({}, NODE, "cuda:0", False),
        ({"zero_stage": 3}, NODE, "cuda:0", True),
        ({"overlap_reduction": True}, NODE, "cuda:0", True),
        ({"overlap_reduction": False}, NODES, "cuda:0", False),
    ],
)
def test_gradients_are_reduced_beside_backward_where_a_network_is_between(
    settings: dict[str, object], world: World, device: str, overlaps: bool
) -> None:
    assert engine_module._overlaps(EngineConfig(**settings), world, device) is overlaps  # type: ignore[arg-type]
