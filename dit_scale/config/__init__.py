"""Every setting: frozen dataclasses with defaults, filled from a YAML file and overrides."""

from dit_scale.config.loading import config_from, describe, get, load_config, resolved, to_yaml
from dit_scale.config.schema import (
    FIXED_FOR_A_RUN,
    AutoencoderConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    EncodeConfig,
    EngineConfig,
    LogConfig,
    ModelConfig,
    PreviewConfig,
    SourceConfig,
    TrainSection,
    WandbConfig,
    WatchdogConfig,
)

__all__ = [
    "FIXED_FOR_A_RUN",
    "AutoencoderConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EncodeConfig",
    "EngineConfig",
    "LogConfig",
    "ModelConfig",
    "PreviewConfig",
    "SourceConfig",
    "TrainSection",
    "WandbConfig",
    "WatchdogConfig",
    "config_from",
    "describe",
    "get",
    "load_config",
    "resolved",
    "to_yaml",
]
