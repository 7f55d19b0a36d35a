"""The run on wandb, on a thread of its own: no step waits for it, and nothing that it meets ends the run.

What wandb 0.31 does, as tried: online, ``init`` raises after 90 s without a server. Later it retries by itself, with
all on disk, but ``finish`` waits for the server for ever. With its own process gone every call raises; with that
process frozen ``finish`` and wandb's hook at the interpreter's exit never return, and no time limit of wandb's helps.
"""

import logging
import netrc
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dit_scale.config import Config, WandbConfig, resolved
from dit_scale.errors import InputError
from dit_scale.supervision.conveniences import Conveniences, Trouble

Mode = Literal["online", "offline", "disabled"]

WHAT = "wandb"
_INIT_SECONDS, _FINISH_SECONDS = 30.0, 30.0
"""For a server that does not answer, unless WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT say otherwise."""
_SPARE_SECONDS = 15.0
"""Beyond these limits, for wandb itself."""
_MOST_WAITING = 100_000
"""Calls that wait for wandb; more are dropped, and told."""
_MODES: dict[str, Mode] = {
    **{"online": "online", "offline": "offline", "disabled": "disabled"},
    **{"run": "online", "shared": "online", "dryrun": "offline"},
}
"""What WANDB_MODE may be."""

log = logging.getLogger(__name__)


class Dashboard:
    """A wandb run that keeps its id over restarts; offline by itself without a key, or where no server takes it."""

    def __init__(self, config: Config, run_dir: Path, conveniences: Conveniences):
        self._config, self._run_dir, self._conveniences = config, run_dir, conveniences
        self._calls: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_MOST_WAITING)
        self._is_on = wandb_mode(config.wandb) != "disabled"
        self._folder: Path | None = None
        self._has_said = False
        self._thread = threading.Thread(target=self._work, name="dashboard", daemon=True)
        if self._is_on:
            self._thread.start()

    def log(self, metrics: dict[str, Any]) -> None:
        """Log the metrics of one step."""
        values = values_of(metrics)
        self._ask(lambda run: run.log(values, step=metrics["step"]))

    def log_picture(self, path: Path, step: int) -> None:
        """Log a preview grid."""
        self._ask(lambda run: _log_picture(run, path, step))

    def close(self) -> None:
        """Finish the run, so that what was logged is on disk and, online, with the server; not for ever."""
        if not self._thread.is_alive():
            return
        limit = _seconds("init_timeout", _INIT_SECONDS) + _seconds("finish_timeout", _FINISH_SECONDS) + _SPARE_SECONDS
        deadline = time.monotonic() + limit
        with suppress(queue.Full):
            self._calls.put(None, timeout=limit)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._is_on = False
            self._conveniences.tell(WHAT, Trouble.of(TimeoutError(f"it did not end within {limit:g} s")))
            self._say_how_to_sync()
            threading.Thread(target=_teardown, daemon=True).start()  # drops first the exit hook, which waits as well

    def _ask(self, call: Callable[[Any], None]) -> None:
        if not self._is_on:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._is_on = False
            self._conveniences.tell(WHAT, Trouble.of(TimeoutError(f"{_MOST_WAITING:,} steps wait for it")))

    # ------------------------------------------------------------ on its own thread

    def _work(self) -> None:
        """Begin, do what is asked until told to finish, and finish; the first error that wandb raises ends it."""
        is_whole = False
        with self._conveniences.attempt(WHAT):
            run, mode = self._begin()
            self._folder = Path(run.dir).parent
            if mode == "offline":
                self._say_how_to_sync()
            while (call := self._calls.get()) is not None:
                call(run)
            run.finish()
            is_whole = True
        self._is_on = False
        if not is_whole:
            self._say_how_to_sync()
        _teardown()

    def _begin(self) -> tuple[Any, Mode]:
        """Start the run; offline where it cannot be online, or where the environment says what wandb does not know."""
        mode = wandb_mode(self._config.wandb)
        while True:
            try:
                return self._start(mode), mode
            except Exception as error:
                variable = wrong_variable(error)
                if variable is None and mode == "offline":
                    raise
                if variable is not None:
                    error = InputError(
                        f"{variable}={os.environ.pop(variable)} is nothing that wandb takes; it is left out"
                    )
                self._conveniences.tell("wandb online", Trouble.of(error))
                _teardown()  # its process keeps the id of the run that failed
                mode = "offline"

    def _start(self, mode: Mode) -> Any:
        import wandb

        settings = self._config.wandb
        is_given = settings.project != WandbConfig().project
        return wandb.init(
            project=settings.project if is_given else os.environ.get("WANDB_PROJECT") or settings.project,
            name=settings.name or os.environ.get("WANDB_NAME") or self._run_dir.resolve().name,
            id=_run_id(self._run_dir / "wandb-id"),
            resume="allow" if mode == "online" and not os.environ.get("WANDB_RESUME") else None,
            dir=os.environ.get("WANDB_DIR") or self._run_dir,
            mode=mode,
            config=resolved(self._config),
            settings=wandb.Settings(
                silent=os.environ.get("WANDB_SILENT", "true").lower() != "false",
                init_timeout=_seconds("init_timeout", _INIT_SECONDS) if mode == "online" else _INIT_SECONDS,
                finish_timeout=_seconds("finish_timeout", _FINISH_SECONDS),
                finish_timeout_raises=True,
            ),
        )

    def _say_how_to_sync(self) -> None:
        if self._folder is not None and not self._has_said:
            self._has_said = True
            log.info("what wandb has of this run is on disk; to send it later: wandb sync %s", self._folder)


def values_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what wandb is told of a step's line of metrics: terms of the loss by a name each, nothing unknown."""
    values = {key: value for key, value in metrics.items() if key not in ("step", "time", "losses")}
    values |= {f"loss/{name}": value for name, value in metrics.get("losses", {}).items()}
    return {key: value for key, value in values.items() if value is not None}


def wandb_mode(settings: WandbConfig) -> Mode:
    """Return online, offline or disabled; auto is as the environment says, else online where an API key is found."""
    if settings.mode != "auto":
        return settings.mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):  # other tools know it, wandb no more
        return "disabled"
    if said := os.environ.get("WANDB_MODE"):
        return _MODES.get(said, "offline")
    return "online" if has_key() else "offline"


def unknown_mode(settings: WandbConfig) -> str | None:
    """Return what WANDB_MODE says where it counts and wandb knows no such mode; the run is offline then."""
    said = os.environ.get("WANDB_MODE")
    return said if said and settings.mode == "auto" and said not in _MODES else None


def wrong_variable(error: Exception) -> str | None:
    """Return the variable of the environment whose value is none for wandb, if an error of its settings is of that."""
    found: list[dict[str, Any]] = getattr(error, "errors", lambda: [])()  # pydantic's
    names = [f"WANDB_{one['loc'][0]}".upper() for one in found if one.get("loc")]
    return next((name for name in names if name in os.environ), None)


def server() -> str:
    """Return the address of the wandb server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def has_key() -> bool:
    """Whether the environment or ~/.netrc has a key for the wandb server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        return netrc.netrc(path).authenticators(urlsplit(server()).hostname or "") is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: this user has no home folder
        return False


def _run_id(path: Path) -> str:
    """Return the id of the run folder's wandb run: the environment's, else the one of before, else a new one."""
    before = path.read_text().strip() if path.is_file() else ""
    now = os.environ.get("WANDB_RUN_ID") or before or secrets.token_hex(4)
    if now != before:
        path.write_text(now)
    return now


def _seconds(setting: str, default: float) -> float:
    """Return a time limit of wandb's as the environment gives it."""
    try:
        return float(os.environ[f"WANDB_{setting.upper()}"])
    except (KeyError, ValueError):
        return default


def _log_picture(run: Any, path: Path, step: int) -> None:
    import wandb

    run.log({"preview": wandb.Image(str(path))}, step=step)


def _teardown() -> None:
    """Have wandb's own process end; what is wrong with it has been told."""
    with suppress(Exception, SystemExit):  # it exits with its process's status where that was killed
        import wandb

        wandb.teardown()
