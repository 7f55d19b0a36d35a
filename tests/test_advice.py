"""What sentences advise can be done: options, settings, commands, extras and files that they name are there.

All texts of the code are read but docstrings, since sentences are also put together from parts. An option or a setting
must belong to every command that can reach the sentence (tests/reach.py finds them), or to one that the sentence names.
"""

import argparse
import ast
import dataclasses
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest

from dit_scale.cli import _parser
from dit_scale.config import Config, EncodeConfig
from dit_scale.jobs.submit import Chain
from tests.launch import ROOT
from tests.reach import Code, Module, Unit

PACKAGES = ("dit_scale", "preprocessing")

SCHEMAS: dict[str, tuple[type, ...]] = {
    "train": (Config,),
    "doctor": (Config,),
    "plan": (Config,),
    "encode": (EncodeConfig,),
    "verify": (EncodeConfig,),  # for a repair
    "submit": (Chain, Config, EncodeConfig),  # and what its stages take
    "bench": (Config, EncodeConfig),  # whose options are called after settings
}
"""The settings that may follow a command."""

OTHERS_OPTIONS = {
    *("--gpus-per-node", "--mem", "--signal", "--job-name", "--output", "--export", "--dependency"),  # sbatch
    *("--kill-on-invalid-dep", "--parsable", "--test-only", "--array"),  # sbatch
    *("--dereference", "--hard-dereference"),  # tar
    *("--master_port", "--main_process_port"),  # deepspeed's launcher, accelerate
    "--abbrev",  # git
}
"""Options of other programs."""

EXCEPTIONS = {
    ("dit_scale.alignment.sources", "alignment.encoders"): "of a network in training, which these do not build",
    ("dit_scale.autoencoder.fitted", "autoencoder.fit_images"): "only encode fits a codec",
    ("dit_scale.autoencoder.fitted", "autoencoder.name"): "the same",
    ("dit_scale.autoencoder.pca", "autoencoder.pca_channels"): "the same",
    ("dit_scale.autoencoder.base", "image_size"): "only encode asks for the size of a latent",
    ("dit_scale.config.loading", "data.path"): "an example of how a setting is written",
    ("dit_scale.config.training", "data.held_out_fraction"): "sample checks settings of its own, not a run's",
    ("dit_scale.config.training", "diffusion.early_weight"): "the same",
    ("dit_scale.config.training", "diffusion.num_timesteps"): "the same",
    ("dit_scale.config.training", "model.condition"): "the same",
    ("dit_scale.config.training", "model.early_block"): "the same",
    ("dit_scale.config.training", "model.label_dropout"): "the same",
    ("dit_scale.config.training", "validation.every_steps"): "the same",
    ("dit_scale.data.dataset", "data.held_out_fraction"): "inspect opens a folder whole",
    ("dit_scale.data.mixture", "data.class_names"): "inspect opens one folder, under its own names",
    ("dit_scale.data.mixture", "data.path"): "the same",
    ("dit_scale.data.cache", "data.cache"): "convert and verify read local folders alone",
    ("dit_scale.data.remote", "data.cache"): "convert and verify read local folders alone",
    ("dit_scale.data.remote", "data.cache_bytes"): "only a run and plan's data have a limit",
    ("dit_scale.data.folder", "model.condition"): "inspect asks records for labels alone",
    ("dit_scale.diffusion.gaussian", "learn_sigma"): "an argument in Python",
    ("dit_scale.evaluation.extractors", "--features"): "a run gives weights or nothing, never a name",
    ("dit_scale.evaluation.extractors", "--weights"): "the same",
    ("dit_scale.interop.exporting", "model.label_dropout"): "says how the run was trained; the advice follows it",
    ("dit_scale.interop.exporting", "routing.fill"): "the same",
    ("dit_scale.models.route", "routing.from_block"): "a stored run has been checked by training",
    ("dit_scale.models.route", "routing.ratio"): "the same",
    ("dit_scale.models.route", "routing.to_block"): "the same",
    ("dit_scale.models.operators", "engine.kernels"): "sampling asks for no forward-mode derivative",
    ("dit_scale.sampling.sampler", "model.condition"): "says how the run was trained; the advice follows it",
    ("dit_scale.jobs.submit", "--num-samples"): "the command line of a stage",
    ("dit_scale.jobs.submit", "--out"): "the command line of a stage",
}
"""Where more is reached by reading than by running, or where a sentence does not advise."""


class Sentence(NamedTuple):
    """A text in the code."""

    module: str
    line: int
    text: str
    """With … where a value goes."""
    commands: frozenset[str]
    """That can reach it."""


class Doable:
    """What can be done: the real parsers, schemas, extras and files."""

    def __init__(self) -> None:
        self.options: dict[str, set[str]] = {}
        self.choices: dict[str, set[str]] = {}
        self.roots: dict[str, list[Unit]] = {}
        for words, command in _commands(_parser()):
            own = {word for action in command._actions for word in action.option_strings if word.startswith("--")}
            self.options.setdefault(words[0], set()).update(own)
            for action in (one for one in command._actions if one.choices):
                self.choices |= {word: {*action.choices, *self.choices.get(word, ())} for word in action.option_strings}
            if run := command.get_default("run"):
                self.roots.setdefault(words[0], []).append((run.__module__, run.__name__))
        self.settings = {name: {key for one in schemas for key, _ in _kinds(one)} for name, schemas in SCHEMAS.items()}
        kinds = {key: kind for schemas in SCHEMAS.values() for one in schemas for key, kind in _kinds(one)}
        self.choices |= {
            key: set(map(str, get_args(kind))) for key, kind in kinds.items() if get_origin(kind) is Literal
        }
        self.choices |= {key: {"true", "false"} for key, kind in kinds.items() if kind is bool}
        self.last_parts = {key.rpartition(".")[2] for keys in self.settings.values() for key in keys}
        self.sections = {key.partition(".")[0] for keys in self.settings.values() for key in keys if "." in key}
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        self.extras = project["optional-dependencies"]
        needed = [*project["dependencies"], *(one for extra in self.extras.values() for one in extra)]
        self.distributions = {re.match(r"[\w-]+", one).group() for one in needed}  # type: ignore[union-attr]

    def complaints(self, sentence: Sentence) -> list[str]:
        """Return what a sentence names that is not there, or not there for a command that can reach it."""
        text = sentence.text
        found = [f"dit-scale {name}" for name in re.findall(r"\bdit-scale ([a-z]+)", text) if name not in self.options]
        found += [f"extra {name}" for name in re.findall(r"dit_scale\[(\w+)\]", text) if name not in self.extras]
        found += [
            f"pip install {name}"
            for name in re.findall(r"pip install ([a-z][\w-]*)", text)
            if name not in self.distributions
        ]
        paths = re.findall(r"(?<![\w/])((?:slurm|docs|configs|benchmarks)/[\w./-]*\w)", text)
        found += [f"file {path}" for path in paths if not (ROOT / path).exists()]
        values = re.findall(r"(--[a-z-]+) ([a-z][\w-]*)", text) + re.findall(r"([a-z_]+\.[a-z_.]+)=(\w+)", text)
        found += [f"{key} {value}" for key, value in values if value not in self.choices.get(key, {value})]
        known = {name: self.options[name] | self.settings.get(name, set()) for name in self.options}
        for what in self._advised(text):
            found += self._lacking(sentence, what, known)
        return found

    def _advised(self, text: str) -> list[str]:
        """Return the options and settings that a sentence names."""
        options = [word for word in re.findall(r"(?<![\w-])--[a-z][a-z_-]*[a-z]", text) if word not in OTHERS_OPTIONS]
        dotted = re.findall(r"(?<![\w/.-])([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w(])", text)
        is_file = re.compile(r"\.(py|md|json|jsonl|yaml|safetensors|npy|npz|sbatch)$").search
        settings = [key for key in dotted if key.partition(".")[0] in self.sections and not is_file(key)]
        bare = re.findall(r"(?<![\w.$/-])([a-z_]+)=(?=\S)", text)
        return options + settings + [key for key in bare if key in self.last_parts]

    def _lacking(self, sentence: Sentence, what: str, known: Mapping[str, set[str]]) -> list[str]:
        named = {name for name in known if re.search(rf"\b{name}\b(?!\])", sentence.text)}
        if re.search(r"\b(a run|the run|trains)\b", sentence.text):
            named.add("train")
        if any(what in known[name] for name in named):
            return []
        told = {name for name in named if any(other in known[name] for other in self._advised(sentence.text))}
        needing = sentence.commands - told
        if not sentence.commands:  # reached by a name made at run time
            return [] if any(what in words for words in known.values()) else [what]
        lacking = sorted(name for name in needing if what not in known[name])
        return [f"{what} for {', '.join(lacking)}"] if lacking else []


@cache
def doable() -> Doable:
    return Doable()


@cache
def reached() -> dict[str, set[Unit]]:
    """What each command may run."""
    code = Code(ROOT, PACKAGES)
    return {name: code.reached_from(units) for name, units in doable().roots.items()}


def _complaints(modules: Iterable[Module]) -> dict[tuple[str, str], list[str]]:
    """Return the sentences that advise what cannot be done, by module and what that is."""
    found: dict[tuple[str, str], list[str]] = {}
    for sentence in _sentences(modules):
        for complaint in doable().complaints(sentence):
            where = f"{sentence.module}:{sentence.line}: {complaint}: {sentence.text}"
            found.setdefault((sentence.module, re.sub(r" for .*", "", complaint)), []).append(where)
    return found


def _sentences(modules: Iterable[Module]) -> Iterator[Sentence]:
    for module in modules:
        for unit, statements in module.units.items():
            commands = frozenset(name for name, units in reached().items() if (module.name, unit) in units)
            for line, text in (found for statement in statements for found in _texts(statement)):
                if " " in text or "=" in text:
                    yield Sentence(module.name, line, text, commands)


def _texts(code: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the texts of some code, f-strings with … for values, without docstrings."""
    nodes = list(ast.walk(code))
    skipped = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def _commands(
    parser: argparse.ArgumentParser, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield (*before, name), command
                yield from _commands(command, (*before, name))


def _kinds(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a schema, sections among them, and their types."""
    for name, kind in get_type_hints(schema).items():
        yield prefix + name, kind
        for inner in (kind, *get_args(kind)):
            if dataclasses.is_dataclass(inner):
                yield from _kinds(inner, f"{prefix}{name}.")  # type: ignore[arg-type]


def test_every_sentence_advises_what_can_be_done() -> None:
    found = _complaints(Code(ROOT, PACKAGES).modules.values())
    wrong = [where for key, places in found.items() if key not in EXCEPTIONS for where in places]
    assert not wrong, "\n".join(wrong)
    assert not (unneeded := EXCEPTIONS.keys() - found.keys()), unneeded


def test_sentences_are_found_and_reached() -> None:
    """So that the test above reads something."""
    sentences = list(_sentences(Code(ROOT, PACKAGES).modules.values()))
    assert sum(bool(doable()._advised(sentence.text)) for sentence in sentences) > 100
    commands = {sentence.module: sentence.commands for sentence in sentences if sentence.commands}
    assert commands["dit_scale.interop.importing"] == {"import"}
    assert commands["dit_scale.doctor.hardware"] == {"doctor"}
    assert commands["dit_scale.autoencoder.convolutional"] > {"encode", "import", "index", "sample"}


@pytest.mark.parametrize(
    ("module", "sentence", "complaint"),
    [
        ("dit_scale.interop.importing", "no heads; give --heads N", "--heads"),
        ("dit_scale.interop.importing", "no heads; give model.num_heads=N", "model.num_heads"),  # a run's
        ("dit_scale.interop.importing", "no seed; give --seed 0", "--seed"),  # sample's
        ("dit_scale.autoencoder.convolutional", "no hub; give autoencoder.name=pca", "autoencoder.name"),  # encode's
        ("dit_scale.zero.engine", "too much; give engine.zero=3", "engine.zero"),
        ("dit_scale.zero.engine", "too slow; give engine.compile=yes", "engine.compile yes"),
        ("dit_scale.zero.engine", "too much; give zero_stage=3", "zero_stage"),
        ("dit_scale.interop.exporting", "too new; export --to npz", "--to npz"),
        ("preprocessing.sources.listing", "no folder; give source.format=tar", "source.format tar"),
        ("dit_scale.data.manifest", "no folder; dit-scale encoder makes one", "dit-scale encoder"),
        ("dit_scale.evaluation.extractors", "no network; pip install 'dit_scale[evaluation]'", "extra evaluation"),
        ("dit_scale.models.linear", "no torchao; pip install torch_ao", "pip install torch_ao"),
        ("dit_scale.jobs.submit", "no site; copy slurm/example.sh", "file slurm/example.sh"),
    ],
)
def test_planted_advice_is_found(tmp_path: Path, module: str, sentence: str, complaint: str) -> None:
    text = _path(module).read_text()
    (tmp_path / "planted.py").write_text(text.replace("raise InputError(", f"raise InputError({sentence!r} or ", 1))
    before, after = (_complaints([Module(module, path)]) for path in (_path(module), tmp_path / "planted.py"))
    assert after.keys() - before.keys() == {(module, complaint)}


def _path(module: str) -> Path:
    return (ROOT / module.replace(".", "/")).with_suffix(".py")
