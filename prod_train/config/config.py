"""What a run is made of: one dataclass, from YAML and flags, checked as a whole before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from prod_decode.errors import ProdError, brief, did_you_mean, reason
from prod_decode.storage.files import write_whole
from prod_decode.storage.models import ADAPTER, require_name
from prod_train.config.recipe import RECIPES, with_recipe
from prod_train.data.formats import DATA_FILES, FORMS, suffix_of
from prod_train.methods import METHODS, OPTIONS
from prod_train.option import COUNT, POSITIVE, POSITIVE_OR_INF, SHARE, WEIGHT, Option, Within

# The names that accelerate knows.
TRACKERS = ("none", "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab")
LORA_INITS = ("random", "contrast")
RETAIN_REFERENCES = ("start", "base")
BASE = "base"  # in the output's directory, with `--save-base`


def _option(
    default: Any,
    help_text: str,
    group: str,
    *,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    within: Within | None = None,
) -> Any:
    about = {"help": help_text, "group": group, "choices": choices, "metavar": metavar, "within": within}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class _Run:
    """What every run has, whatever its method; see `Config`."""

    model: str = _option(
        "", "the model to train: a hub id, a directory, a LoRA adapter's directory, or `bundled`", "what", metavar="M"
    )
    forget: str = _option(
        "",
        "what to forget (or, with `learn`, to learn): JSONL, CSV, parquet, a folder of such files, a `save_to_disk` "
        "directory, or a hub name[:split]",
        "what",
        metavar="F",
    )
    output: str = _option("", "directory to write; it must be new or empty unless `--resume`", "what", metavar="DIR")
    recipe: str | None = _option(
        None,
        "choose method, rounds, rates and stop rules by what was measured, and take functions of Python's standard "
        "library as `--retain` and `--holdout` where none are given; any other flag wins",
        "what",
        choices=tuple(RECIPES),
    )
    method: str = _option(
        "prod",
        "how to forget; a command without it and `--recipe` is `--recipe balanced`",
        "what",
        choices=tuple(METHODS),
    )
    retain: str | None = _option(None, "what a retain loss keeps, in the formats of `--forget`", "what", metavar="R")
    holdout: str | None = _option(
        None, "code for measuring damage only, never trained on, in the formats of `--forget`", "what", metavar="H"
    )

    max_length: int = _option(1024, "tokens of a row, EOS included (default 1024)", "data", metavar="N", within=COUNT)
    truncate: bool = _option(
        False, "cut rows longer than `--max-length` at its end; they are refused otherwise", "data"
    )

    format: str = _option(
        "auto",
        "what a row is. auto: prompt and completion, text, or messages, by its keys; messages, sharegpt, alpaca: a "
        "chat, of which every answer of the assistant is a row, written by the model's chat template (default auto)",
        "data",
        choices=FORMS,
    )
    columns: tuple[str, ...] = _option(
        (),
        "what columns are called, as in `prompt=question completion=code`; only these are read then",
        "data",
        metavar="KEY=COLUMN",
    )

    special_tokens: bool = _option(
        False,
        "the name of a special token in a row is that token, as in rows made with a chat template; otherwise it is "
        "text, as in code",
        "data",
    )

    retain_loss: str | None = _option(
        None,
        "loss on `--retain`: none, nll, or kl to the model as it was (default with --retain: kl; nll for graddiff)",
        "method",
        choices=("none", "nll", "kl"),
    )
    retain_reference: str = _option(
        "start",
        "what the retain loss kl keeps to. start: the model as it was; base: the same without the adapter that --model "
        "names, so that a second round keeps to the model from before the first (default start)",
        "method",
        choices=RETAIN_REFERENCES,
    )
    holdout_reference: str = _option(
        "start",
        "what KL and agreement on `--holdout` are distances from. start: the model as it was; base: the same without "
        "the adapter that --model names, so that a second round is measured from before the first (default start)",
        "evaluation",
        choices=RETAIN_REFERENCES,
    )
    retain_weight: float = _option(1.0, "factor of the retain loss (default 1)", "method", metavar="X", within=WEIGHT)

    tuning: str = _option(
        "lora", "lora: adapters; full: all weights (default lora)", "training", choices=("lora", "full")
    )
    lora_rank: int = _option(16, "rank (default 16)", "training", metavar="R", within=Within(1, 65_536))
    lora_alpha: float = _option(32.0, "LoRA scale times rank (default 32)", "training", metavar="A", within=POSITIVE)
    lora_dropout: float = _option(0.0, "probability, 0 to 1 (default 0)", "training", metavar="P", within=SHARE)
    lora_targets: tuple[str, ...] = _option(
        (),
        "names of the linear layers, or of a mixture's expert weights, that get an adapter (default: all linear layers "
        "of attention and MLP)",
        "training",
        metavar="NAME",
    )
    lora_init: str = _option(
        "random",
        "what an adapter begins with. random: PEFT's default; contrast: directions that the layers' inputs have on the "
        "forget set and not on `--retain`, so that other code is moved less (default random)",
        "training",
        choices=LORA_INITS,
    )
    gradient_projection: int = _option(
        0,
        "directions that an adapter's input has most of on `--retain`: off them the forget loss's gradient of LoRA's A "
        "is projected, so that other code is moved less (default 0)",
        "training",
        metavar="N",
        within=Within(0, 65_536),
    )
    load_in_4bit: bool = _option(False, "keep the frozen base in 4 bits (NF4; needs the extra `4bit`)", "training")
    save_base: bool = _option(
        False,
        "write the base of a GGUF file or of `bundled` to OUTPUT/base, in the hub's format, and have the adapter name "
        "that: peft alone cannot load the others",
        "training",
    )
    dtype: str = _option(
        "auto",
        "of the base's weights and of the computation; auto: bfloat16 on a GPU, else float32. With `--tuning full`, "
        "weights are float32 and only the computation is bfloat16",
        "training",
        choices=("auto", "float32", "bfloat16"),
    )
    epochs: float = _option(
        5.0, "passes over the forget set (default 5)", "training", metavar="N", within=Within(0, 100_000, above=True)
    )
    max_steps: int | None = _option(
        None, "optimizer steps, in place of `--epochs`", "training", metavar="N", within=Within(1, 10_000_000)
    )
    learning_rate: float | None = _option(
        None, "peak of AdamW's (default: 3e-4 with lora, 5e-6 with full)", "training", metavar="X", within=POSITIVE
    )
    batch_size: int = _option(4, "rows a forward pass and process (default 4)", "training", metavar="N", within=COUNT)
    accumulate: int = _option(1, "forward passes an optimizer step (default 1)", "training", metavar="N", within=COUNT)
    scheduler: str = _option(
        "linear",
        "learning rate after warm-up (default linear, to 0)",
        "training",
        choices=("linear", "cosine", "constant"),
    )
    warmup: float = _option(
        0.0, "share of the optimizer steps, 0 to 1 (default 0)", "training", metavar="X", within=SHARE
    )
    weight_decay: float = _option(0.0, "of AdamW (default 0)", "training", metavar="X", within=WEIGHT)
    max_grad_norm: float | None = _option(
        1.0, "gradients are clipped to this norm (default 1)", "training", metavar="X", within=POSITIVE_OR_INF
    )
    gradient_checkpointing: bool = _option(False, "recompute activations: less memory, a third more time", "training")
    chunk_size: int = _option(
        448, "rows of logits that exist at once (default 448)", "training", metavar="N", within=COUNT
    )
    seed: int = _option(
        42,
        "of the order of rows, initialisation, dropout and refusals (default 42)",
        "training",
        metavar="N",
        within=Within(0, 2**64 - 1),
    )

    eval_every: float = _option(
        1.0, "epochs between evaluations and checkpoints (default 1)", "evaluation", metavar="N", within=POSITIVE
    )
    eval_rows: int = _option(
        64, "rows of each set that are evaluated, the first ones (default 64)", "evaluation", metavar="N", within=COUNT
    )
    eval_batch_size: int = _option(8, "rows a forward pass (default 8)", "evaluation", metavar="N", within=COUNT)
    stop_at_forget: float | None = _option(
        None,
        "stop once 1 - greedy recitation of the forget set reaches this, 0 to 1",
        "evaluation",
        metavar="X",
        within=SHARE,
    )
    max_utility_drop: float | None = _option(
        None,
        "stop once top-1 agreement with the starting model on `--holdout` has fallen by more than this, 0 to 1; the "
        "result is then the best checkpoint that obeys",
        "evaluation",
        metavar="X",
        within=SHARE,
    )
    save_total_limit: int = _option(
        2, "checkpoints kept, the best one besides (default 2)", "evaluation", metavar="N", within=COUNT
    )
    report_to: str = _option(
        "none",
        "also send losses and metrics to this tracker, whose package must be installed (default none)",
        "evaluation",
        choices=TRACKERS,
    )
    resume: str | None = _option(None, "go on from a checkpoint's directory, or `latest`", "evaluation", metavar="C")
    cache: str | None = _option(
        None,
        "directory for what is computed once of the reference model, shared between runs (default: OUTPUT/targets)",
        "evaluation",
        metavar="DIR",
    )

    # --- what is derived ---------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """The peak learning rate, its default resolved."""
        return self.learning_rate if self.learning_rate is not None else (3e-4 if self.tuning == "lora" else 5e-6)

    @property
    def keeps(self) -> str:
        """`retain_loss`, its default resolved."""
        if self.retain_loss is not None:
            return self.retain_loss
        if not self._retains:
            return "none"
        return METHODS[self.method].retain_loss if self.method in METHODS else "kl"

    @property
    def _retains(self) -> bool:
        """Whether there is a retain set, or a recipe that finds one."""
        return self.retain is not None or self.recipe is not None

    def value(self, name: str) -> Any:
        """The value of an option, its default resolved: the method's, where it has the option."""
        if name == "retain_loss":
            return self.keeps
        given = getattr(self, name)
        if given is not None or self.method not in METHODS:
            return given
        return next((v for option, v in METHODS[self.method].options.items() if option.name == name), None)

    @property
    def continues_adapter(self) -> bool:
        """Whether `model` is an adapter, which is trained further, and not a whole model."""
        return Path(self.model, ADAPTER).is_file()

    @property
    def target_folder(self) -> Path:
        """Where what is computed once of the reference model is kept."""
        return Path(self.cache) if self.cache else Path(self.output, "targets")

    # --- checks ------------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """Everything wrong with the values and the files they name, each with what was expected and a remedy."""
        found = [
            f"--{name}: expected {what}, it is missing"
            for name, what in (("model", "a model"), ("forget", "a data set"), ("output", "a directory to write"))
            if not getattr(self, name)
        ]
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if choices and value is not None and value not in choices:
                given = brief(value)
                found.append(
                    f"{flag(option.name)}: expected {', '.join(choices)}, got {given!r}{did_you_mean(given, choices)}"
                )
        if self.model and not self.continues_adapter:
            try:
                require_name(self.model)
            except ProdError as error:
                found.append(f"--model: {error}")
        found += self._range_problems()
        found += self._combination_problems()
        return found

    def _range_problems(self) -> list[str]:
        found = []
        for option in dataclasses.fields(self):
            value, within = getattr(self, option.name), option.metadata["within"]
            if value is not None and within is not None and (problem := within.problem(value)):
                found.append(f"{flag(option.name)}: {problem}")
        return found

    def _combination_problems(self) -> list[str]:
        found = []
        for option, defaults in OPTIONS.items():
            given = getattr(self, option.name)
            if given == _FIELDS[option.name].default:
                continue
            if self.method in METHODS and self.method not in defaults:
                owners = " and ".join(defaults)
                found.append(f"{flag(option.name)}: belongs to method {owners}, got {self.method}: drop it")
            if option.is_file and not Path(given).is_file():
                found.append(f"{flag(option.name)}: expected a file, {given} does not exist")
        if self.method in METHODS:
            found += METHODS[self.method].problems(self)
        if self.keeps != "none" and not self._retains:
            found.append(f"--retain: expected a data set for the retain loss {self.keeps!r}, it is missing")
        if self.gradient_projection and self._retains and self.keeps == "none":
            found.append("--gradient-projection: belongs to a retain loss, got --retain-loss none: drop one of the two")
        elif self.retain is not None and self.keeps == "none":
            found.append("--retain-loss none: leaves --retain without use: drop one of the two")
        if self.retain_reference == "base" and self.keeps != "kl":
            found.append(f"--retain-reference: belongs to the retain loss kl, got {self.keeps}: drop it")
        found += [
            f"{flag(name)} base: expected an adapter's directory as --model, got {self.model}"
            for name in ("retain_reference", "holdout_reference")
            if getattr(self, name) == "base" and not self.continues_adapter
        ]
        if self.max_utility_drop is not None and self.holdout is None and self.recipe is None:
            found.append("--max-utility-drop: expected --holdout, on which the drop is measured, it is missing")
        if self.tuning == "full":
            found += [f"{flag(name)}: belongs to --tuning lora, got full: drop it" for name in self._shape_given()]
        if not self._retains and self.retain_weight != _FIELDS["retain_weight"].default:
            found.append("--retain-weight: belongs to a retain loss: expected --retain, it is missing")
        if self.load_in_4bit and self.tuning == "full":
            found.append("--load-in-4bit: a 4-bit base cannot be trained: use --tuning lora")
        if self.save_base and (self.tuning == "full" or self.load_in_4bit):
            other = "--tuning full" if self.tuning == "full" else "--load-in-4bit"
            found.append(f"--save-base: belongs to an adapter of a GGUF file's model, not of {other}: drop it")
        if self.continues_adapter:
            if self.tuning == "full":
                found.append(
                    "--tuning full: --model is an adapter, whose base would be trained without it: "
                    "add it to its base with prod-train merge first"
                )
            found += [
                f"{flag(name)}: --model is an adapter, which has its own: drop it" for name in self._shape_given()
            ]
        if self.lora_init == "contrast":
            if not self._retains:
                found.append("--lora-init contrast: expected --retain, to tell the forget set from, it is missing")
            if self.tuning == "full":
                found.append("--lora-init contrast: full tuning has no adapters: drop one of the two")
            if self.continues_adapter:
                found.append("--lora-init contrast: --model has an adapter already: drop the flag")
        if self.gradient_projection:
            if not self._retains:
                found.append("--gradient-projection: expected --retain, whose directions they are, it is missing")
            if self.tuning == "full":
                found.append("--gradient-projection: full tuning has no adapters: drop one of the two")
        if self.stop_at_forget is not None and self.method in METHODS and not METHODS[self.method].forgets:
            found.append(f"--stop-at-forget: belongs to methods that forget, got {self.method}: drop it")
        for name in ("forget", "retain", "holdout"):
            value = getattr(self, name)
            if value and suffix_of(value) in DATA_FILES and not Path(value).exists():
                found.append(f"{flag(name)}: cannot read {value}: no such file")
        if self.resume not in (None, "latest") and not Path(str(self.resume), "trainer.pt").is_file():
            found.append(f"--resume: expected 'latest' or a checkpoint's directory, {self.resume} is none")
        found += [
            f"{flag(name)}: {problem}"
            for name in ("output", "cache")
            if getattr(self, name) and (problem := _no_place_to_write(Path(getattr(self, name))))
        ]
        return found

    def _shape_given(self) -> list[str]:
        """The options that shape a new adapter and are not at their defaults."""
        names = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
        return [name for name in names if getattr(self, name) != default_of(name)]

    def validate(self) -> Self:
        """The configuration itself.

        Raises:
            ProdError: all problems in one message.
        """
        if found := self.problems():
            raise ProdError(*found)
        return self

    def save(self, path: Path) -> None:
        """Write every value, defaults resolved, as YAML that `prod-train run` reads."""
        import yaml

        with write_whole(path) as file:
            file.write(yaml.safe_dump(self.to_dict(), sort_keys=False).encode())

    def to_dict(self) -> dict[str, Any]:
        """Every value with its default resolved, as JSON-able types."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}
        values["learning_rate"] = self.rate
        values["retain_loss"] = self.keeps if self.retain else None
        if self.method in METHODS:
            values |= {option.name: self.value(option.name) for option in METHODS[self.method].options}
        return values


def _field_of(option: Option, defaults: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """An option of methods as a field: its default is theirs if they share one, and otherwise None."""
    values = list(defaults.values())
    shared = all(value == values[0] for value in values)
    text = f"{', '.join(defaults)}: {option.help}"
    if not shared:
        text += f" (default: {', '.join(f'{name} {value:g}' for name, value in defaults.items())})"
    elif option.kind is not bool:
        text += f" (default: {option.unset})" if values[0] is None else f" (default {values[0]:g})"
    given = _option(values[0] if shared else None, text, option.group, metavar=option.metavar, within=option.within)
    return option.name, option.kind if shared and values[0] is not None else option.kind | None, given


if typing.TYPE_CHECKING:

    class Config(_Run):
        """See below; which options methods have is known when the program runs."""

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    Config = dataclasses.make_dataclass(
        "Config",
        [_field_of(*one) for one in OPTIONS.items()],
        bases=(_Run,),
        frozen=True,
        namespace={"__module__": __name__},
    )
    Config.__doc__ = """A run. `--help` and docs/reference/cli.md are made from the text of each field.

    A field is a flag with dashes for underscores, and a key of the YAML file. A flag wins over the file, the file over
    the default. The methods add their options (`prod_train.methods`).
    """


_FIELDS = {option.name: option for option in dataclasses.fields(Config)}


def default_of(name: str) -> Any:
    """What a field of `Config` is where nothing is given."""
    return _FIELDS[name].default


def flag(name: str) -> str:
    """A field as the user types it: `--max-length`."""
    return "--" + name.replace("_", "-")


def make_config(file: str | None, flags: Mapping[str, Any], *, recipe: str | None = None) -> Config:
    """The configuration of a YAML file and flags, a flag before the file, the file before the default; checked.

    A recipe's choices come between the file and the defaults, but for those that `prod_train.rounds` makes by the size
    of the model and the data.

    Args:
        file: a YAML file with some of the fields of `Config`, or None.
        flags: values by field name; only those that the user gave.
        recipe: where they name neither a recipe nor a method; None: the default of `Config.method`.

    Raises:
        ProdError: every unknown key, value of another type, and problem of `Config.problems`, in one message.
    """
    values, problems = _values(file, flags)
    values, contradicting = with_recipe(values, recipe)
    problems += contradicting
    config = Config(**values)
    # A value that could not be read is not missing as well.
    told = {problem.partition(":")[0] for problem in problems}
    problems += [problem for problem in config.problems() if problem.partition(":")[0] not in told]
    if problems:
        raise ProdError(*problems)
    return config


def given_fields(file: str | None, flags: Mapping[str, Any]) -> frozenset[str]:
    """The fields of `Config` that a YAML file and flags give, see `make_config`: a recipe chooses none of these."""
    values, _ = _values(file, flags)
    return frozenset(name for name, value in values.items() if value is not None)


def saved_config(file: Path) -> Config:
    """The configuration of a run that was, as `Config.save` wrote it; its data may be gone since.

    Raises:
        ProdError: it cannot be read, or has unknown keys or values of another type.
    """
    values, problems = _values(str(file), {})
    if problems:
        raise ProdError(*problems)
    return Config(**values)


def _values(file: str | None, flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of a YAML file and flags by field name, and what is wrong with their names and types."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    for source, given in (("", _read_yaml(file) if file else {}), ("flags", flags)):
        for key, raw in given.items():
            name = str(key).replace("-", "_")
            if name not in _FIELDS:
                problems.append(f"{source or file}: unknown key {brief(str(key))!r}{did_you_mean(name, _FIELDS)}")
                continue
            try:
                values[name] = _convert(raw, _TYPES[name])
            except ValueError as error:
                problems.append(f"{flag(name)}: {error}")
    return values, problems


def _read_yaml(file: str) -> dict[str, Any]:
    import yaml

    from prod_decode.blocklist.sources import read_text

    text = read_text(file)
    try:
        values = yaml.load(text, unique_loader(yaml))  # noqa: S506 (a SafeLoader)
    # A number of 5,000 digits or a date that does not exist is a ValueError, deep nesting a RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ProdError(f"{file}: expected YAML, got {brief(' '.join(str(error).split()), 300)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ProdError(f"{file}: expected keys and values, got {type(values).__name__}")
    return values


def _no_place_to_write(folder: Path) -> str:
    """Why a directory cannot be written, or made, or ""."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except (OSError, ValueError) as error:  # too long, or with a NUL
        return f"cannot write to {brief(str(folder))}: {reason(error, 60)}: name another"
    if there is folder and not folder.is_dir():
        return f"expected a directory, {folder} is a file"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return f"cannot write to {folder}: {there} is not a directory to write in: name another"
    return ""


def unique_loader(yaml: Any) -> Any:
    """PyYAML's `SafeLoader`, which refuses a key that stands there twice: otherwise the last one would count."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {brief(key)!r} stands there twice")
            return super().construct_mapping(node, deep)

    return Loader


_TYPES = typing.get_type_hints(Config)


def plain_type(annotation: Any) -> tuple[type, bool]:
    """The type of a field without `| None`, and whether None is allowed; a tuple field is `tuple`."""
    if isinstance(annotation, types.UnionType):
        kinds = [kind for kind in annotation.__args__ if kind is not type(None)]
        return kinds[0], True
    return typing.get_origin(annotation) or annotation, False


def _convert(raw: Any, annotation: Any) -> Any:
    kind, optional = plain_type(annotation)
    if raw is None and optional:
        return None
    if kind is tuple and isinstance(raw, (list, tuple)) and all(isinstance(item, str) for item in raw):
        return tuple(raw)
    if kind is str and isinstance(raw, (str, Path)) and "\0" not in str(raw):
        return str(raw)
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind in (int, float) and isinstance(raw, (int, float, str)) and not isinstance(raw, bool):
        number = _number(raw)
        if kind is float and not math.isnan(number):
            return float(number)
        if kind is int and number == number // 1:
            return int(number)
    names = {tuple: "a list of names", str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    raise ValueError(f"expected {names[kind]}, got {brief(repr(raw) if isinstance(raw, str) else raw, 40)}")


def _number(raw: float | str) -> float:
    """As it is where it is whole, since a float has 53 bits; NaN if it is no number, or none that a float holds."""
    try:
        whole = int(raw) if isinstance(raw, (int, str)) else None
    except ValueError:
        whole = None
    try:
        # YAML reads 3e-4 as a string.
        number = float(raw)
    except (ValueError, OverflowError):
        return math.nan
    return number if whole is None else whole
