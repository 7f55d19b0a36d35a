"""What a run reports: metrics.jsonl, the console, wandb; cut back to the checkpoint after a kill."""

import json
import netrc
import os
import secrets
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from dit_scale.config import Config, WandbConfig, resolved
from dit_scale.files import atomic_write

METRICS = "metrics.jsonl"
Mode = Literal["online", "offline", "disabled"]


class Lines:
    """A file of JSON lines that is appended to, each line whole as soon as it is written."""

    def __init__(self, path: Path):
        self._file = path.open("a")

    def write(self, value: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; what was written is on disk."""
        os.fsync(self._file.fileno())
        self._file.close()


def cut_back(path: Path, step: int) -> None:
    """Keep the lines of steps up to ``step``; later ones are about to be written anew, a torn last one is dropped."""
    if not path.is_file():
        return
    with path.open() as old, atomic_write(path, "w") as new:
        for line in old:
            try:
                if json.loads(line)["step"] > step:
                    break
            except ValueError:
                break
            new.write(line)


class Console:
    """Lines on rank zero's output: step, loss, images a second, time left."""

    def __init__(self, total_steps: int, every_steps: int):
        self._total_steps = total_steps
        self._every_steps = every_steps
        self._recent: deque[dict[str, Any]] = deque(maxlen=max(1, every_steps))
        self._started = time.monotonic()

    def show(self, metrics: dict[str, Any]) -> None:
        """Print every n-th step, and the first and the last."""
        self._recent.append(metrics)
        step = metrics["step"]
        if step % self._every_steps and step != self._total_steps and len(self._recent) > 1:
            return
        count = len(self._recent)
        seconds = sum(entry["step_seconds"] for entry in self._recent) / count
        loss = sum(entry["loss"] for entry in self._recent) / count
        left = timedelta(seconds=round(seconds * (self._total_steps - step)))
        elapsed = timedelta(seconds=round(time.monotonic() - self._started))
        print(
            f"step {step}/{self._total_steps}  loss {loss:.4f}  grad norm {metrics['grad_norm']:.3f}  "
            f"rate {metrics['learning_rate']:.1e}  {metrics['images_per_second']:.0f} images/s  "
            f"elapsed {elapsed}  left {left}",
            flush=True,
        )


class Wandb:
    """A wandb run that keeps its id over restarts; offline by itself where there is no key."""

    def __init__(self, config: Config, run_dir: Path):
        mode = wandb_mode(config.wandb)
        self._run: Any = None
        if mode == "disabled":
            return
        import wandb

        id_file = run_dir / "wandb-id"
        if not id_file.is_file():
            id_file.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project=config.wandb.project,
            name=config.wandb.name or run_dir.resolve().name,
            id=id_file.read_text().strip(),
            resume="allow" if mode == "online" else None,
            dir=run_dir,
            mode=mode,
            config=resolved(config),
            settings=wandb.Settings(silent=True),
        )

    def log(self, metrics: dict[str, Any]) -> None:
        """Log the metrics of one step."""
        if self._run is not None:
            values = {key: value for key, value in metrics.items() if value is not None and key != "step"}
            self._run.log(values, step=metrics["step"])

    def log_picture(self, path: Path, step: int) -> None:
        """Log a preview grid."""
        if self._run is not None:
            import wandb

            self._run.log({"preview": wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Finish the run, so that what was logged is on disk."""
        if self._run is not None:
            self._run.finish()


def wandb_mode(settings: WandbConfig) -> Mode:
    """Return online, offline or disabled; auto is online where an API key is found."""
    if settings.mode != "auto":
        return settings.mode
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
