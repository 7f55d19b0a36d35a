"""Every setting: frozen dataclasses with defaults, filled from a YAML file and overrides."""

from dit_scale.config.alignment import AlignmentConfig
from dit_scale.config.checking import refuse_unused, unused_names, used
from dit_scale.config.describing import describe
from dit_scale.config.encoding import AutoencoderConfig, EncodeConfig, SourceConfig
from dit_scale.config.loading import config_from, get, load_config, load_options, resolved, to_yaml
from dit_scale.config.model import OF_TRAINING, DiffusionConfig, ModelConfig
from dit_scale.config.options import add_options, read_options_of
from dit_scale.config.routing import RoutingConfig
from dit_scale.config.sampling import EvaluationConfig, PreviewConfig, SampleConfig, SamplingConfig
from dit_scale.config.training import (
    FIXED_FOR_A_RUN,
    CheckpointConfig,
    Config,
    DataConfig,
    EngineConfig,
    LogConfig,
    TrainSection,
    ValidationConfig,
    WandbConfig,
    WatchdogConfig,
)

__all__ = [
    "FIXED_FOR_A_RUN",
    "OF_TRAINING",
    "AlignmentConfig",
    "AutoencoderConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "EncodeConfig",
    "EngineConfig",
    "EvaluationConfig",
    "LogConfig",
    "ModelConfig",
    "PreviewConfig",
    "RoutingConfig",
    "SampleConfig",
    "SamplingConfig",
    "SourceConfig",
    "TrainSection",
    "ValidationConfig",
    "WandbConfig",
    "WatchdogConfig",
    "add_options",
    "config_from",
    "describe",
    "get",
    "load_config",
    "load_options",
    "read_options_of",
    "refuse_unused",
    "resolved",
    "to_yaml",
    "unused_names",
    "used",
]
