"""A run folder's config.yaml."""

from pathlib import Path

from dit_scale.config import Config, to_yaml
from dit_scale.files import atomic_write
from dit_scale.versions import versions


def write_config(run_dir: Path, config: Config, device: str) -> None:
    """Write config.yaml: the resolved settings; versions, git commit and what computes as comments above them."""
    head = [*(f"{name} {number}" for name, number in versions().items()), f"on {device}"]
    with atomic_write(run_dir / "config.yaml", "w") as file:
        file.write(to_yaml(config, head))
