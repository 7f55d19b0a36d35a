"""The hub of published models: whether a name means it, and whether it can be reached."""

from pathlib import Path

from dit_scale.errors import InputError

_ANSWER_SECONDS = 5.0
"""A hub that is there answers within a fraction of this."""


def refuse_missing_folder(name: str, or_else: str = "") -> None:
    """Raise InputError where a name reads like a path and no folder is there; a hub name is of the form OWNER/NAME."""
    if Path(name).is_dir():
        return
    first, slash, _ = name.partition("/")
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or bool(slash and Path(first).is_dir())
    if is_path or Path(name).exists():
        what = "is a file, not a folder" if Path(name).is_file() else "is not a folder of this machine"
        raise InputError(
            f"autoencoder '{name}' {what}; give the folder of a diffusers autoencoder, one with "
            f"autoencoder.safetensors, or a hub name such as stabilityai/sd-vae-ft-ema{or_else}"
        )


def why_out_of_reach() -> str | None:
    """Return why only the hub's cache on this machine can be read; None where the hub answers."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_ANSWER_SECONDS)
    except Exception:  # of whichever library it uses
        return f"the hub, {constants.ENDPOINT}, cannot be reached"
    return None


def not_cached(name: str, revision: str | None, why: str, or_else: str = "") -> InputError:
    """Return the refusal of an autoencoder that is not in the cache, while the hub is out of reach."""
    what = f"revision {revision} of {name}" if revision else name
    return InputError(
        f"autoencoder '{name}' cannot be loaded (it is not in the hub's cache on this machine, and {why}); give a "
        f"local folder of it{or_else}, or download {what} where there is a network, with the same HF_HOME, by hf "
        f"download"
    )
