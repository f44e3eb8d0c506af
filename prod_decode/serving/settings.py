"""Named blocklists for servers: what an operator loads, what every request gets, and what a request may add."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prod_decode.blocklist.sources import unique_keys
from prod_decode.errors import ProdError, closest, did_you_mean
from prod_decode.serving.audit_log import AuditLog

if TYPE_CHECKING:
    from prod_decode.blocklist.blocklist import Blocklist
    from prod_decode.corpus.index import CorpusIndex
    from prod_decode.match.matcher import Matcher

ENVIRONMENT = "PROD_BLOCKLISTS"
ARGUMENT = "prod_blocklists"

# `prod-decode check-server` asks with it: `REPORT` is answered with what the server enforces, `CANARY` adds the list
# of this name, which bans one phrase, which nobody writes.
CHECK, REPORT, CANARY = "prod_check", "report", "canary"
CANARY_PHRASE = "prod_decode_canary_7c1e5bd04af29b36"
# Asks that a request be matched with JSON's escapes decoded as well; set on those that may call tools.
JSON = "prod_json"
# Set on a request whose `ignore_eos` was taken over: EOS is masked, and written only to end a row.
ENDLESS = "prod_ignore_eos"

_KEYS = ("blocklists", "default", "json", "exempt_prompt", "audit_log", "audit_text")
_EXAMPLE = '{"blocklists": {"gpl": "gpl.prod"}, "default": ["gpl"]}'


@dataclass(frozen=True, slots=True)
class Settings:
    """Which blocklists a server has.

    Attributes:
        files: the compiled file of each, by name.
        default: the names that are enforced on every request, in the order of `files`.
        json: which requests are matched with JSON's escapes decoded as well: `auto`, those that write JSON as far as
            can be seen; or `always`.
        exempt_prompt: the names of lists under which an output may repeat what its prompt quotes.
        audit_log: the file that hits are written to, as for `AuditLog`; None: none.
        audit_text: also what the model wanted or wrote.
    """

    files: dict[str, str]
    default: tuple[str, ...]
    json: Literal["auto", "always"] = "auto"
    exempt_prompt: tuple[str, ...] = ()
    audit_log: str | None = None
    audit_text: bool = False

    @classmethod
    def parse(cls, value: object, where: str) -> Settings:
        """Settings from parsed JSON: `{"blocklists": {NAME: FILE, ...}, "default": [NAME, ...], "json": "always"}`.

        Without `default` every blocklist is enforced on every request; without `json` it is `auto`. `exempt_prompt`
        names lists as `default` does; without it there are none. `audit_log` is a file, `audit_text` true or false.

        Args:
            value: the JSON value.
            where: what the messages call it: the option or variable that it comes from.

        Raises:
            ProdError: anything else than that.
        """
        if not isinstance(value, dict):
            raise ProdError(f"{where}: expected an object such as {_EXAMPLE}, got {value!r}")
        if unknown := [key for key in value if key not in _KEYS]:
            raise ProdError(
                f"{where}: expected the keys {', '.join(map(repr, _KEYS[:-1]))} and {_KEYS[-1]!r}, got "
                f"{unknown[0]!r}: remove it"
            )
        files = value.get("blocklists")
        if not isinstance(files, dict) or not files:
            raise ProdError(f"{where}: blocklists: expected names and files as in {_EXAMPLE}, got {files!r}")
        for name, file in files.items():
            if not name or not isinstance(name, str) or not isinstance(file, str) or not file:
                raise ProdError(f"{where}: blocklists: expected a name and a file, got {name!r}: {file!r}")
            if name == CHECK:
                raise ProdError(f"{where}: blocklists: {CHECK!r} is the name of the canary: use another one")
        chosen = {key: value.get(key, absent) for key, absent in (("default", list(files)), ("exempt_prompt", []))}
        for key, names in chosen.items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ProdError(f"{where}: {key}: expected a list of names, [] for none, got {names!r}")
            for name in names:
                if name not in files:
                    raise ProdError(f"{where}: {key}: {_unknown(name, files)}")
        unescape = value.get("json", "auto")
        if unescape not in ("auto", "always"):
            raise ProdError(
                f"{where}: json: expected 'auto', for requests with structured output or tools, or 'always', got "
                f"{unescape!r}"
            )
        default, exempt = (tuple(name for name in files if name in names) for names in chosen.values())
        log, text = value.get("audit_log"), value.get("audit_text", False)
        if log is not None and (not isinstance(log, str) or not log):
            raise ProdError(f"{where}: audit_log: expected the name of a file, got {log!r}")
        if not isinstance(text, bool) or (text and log is None):
            got = repr(text) if not isinstance(text, bool) else "true without an audit_log"
            raise ProdError(f"{where}: audit_text: expected true or false beside audit_log, got {got}")
        return cls(dict(files), default, unescape, exempt, log, text)

    def open_log(self) -> AuditLog | None:
        """The audit log, if the settings name one.

        Raises:
            ProdError: as `AuditLog`.
        """
        if self.audit_log is None:
            return None
        try:
            return AuditLog(self.audit_log, text=self.audit_text)
        except ProdError as error:
            raise ProdError(f"audit_log: {error}") from None

    @classmethod
    def find(cls, options: object, environment: Mapping[str, str] = os.environ) -> Settings:
        """The settings in `options["prod"]` or, as JSON, in the environment variable `PROD_BLOCKLISTS`.

        Args:
            options: vLLM's `additional_config`.
            environment: where to look for the variable.

        Raises:
            ProdError: none or both of them, or something that `parse` refuses.
        """
        given = options.get("prod") if isinstance(options, Mapping) else None
        text = environment.get(ENVIRONMENT)
        if given is not None and text is not None:
            raise ProdError(f"blocklists: expected one of --additional-config and {ENVIRONMENT}, got both: drop one")
        if given is not None:
            return cls.parse(given, '--additional-config, "prod"')
        if text is None:
            found = next((name for name in environment if is_variable(name)), None)
            raise ProdError(
                f"blocklists: expected --additional-config '{{\"prod\": {_EXAMPLE}}}' or {ENVIRONMENT}='{_EXAMPLE}', "
                f"got {found or 'neither'}: say which compiled blocklists to enforce"
            )
        try:
            value = json.loads(text, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise ProdError(f"{ENVIRONMENT}: expected JSON such as {_EXAMPLE}, got {text!r} ({error})") from None
        return cls.parse(value, ENVIRONMENT)

    def load(self) -> dict[str, Blocklist | CorpusIndex]:
        """Every blocklist and corpus index, by name.

        Raises:
            ProdError: a file that is missing or damaged; the message says under which name it was given.
        """
        from prod_decode.corpus.index import load_source

        loaded = {}
        for name, file in self.files.items():
            try:
                loaded[name] = load_source(file, verify=True)
            except ProdError as error:
                raise ProdError(f"blocklist {name!r}: {error}") from None
        return loaded

    def bind(self, loaded: Mapping[str, Blocklist | CorpusIndex], tokenizer: Any) -> dict[str, Matcher]:
        """The matchers of blocklists for a tokenizer, by name, with the exemptions of `exempt_prompt`.

        Raises:
            ProdError: as `Blocklist.bind`.
        """
        bound = {name: blocklist.bind(tokenizer) for name, blocklist in loaded.items()}
        exempting = {name: bound[name].exempting_prompts() for name in self.exempt_prompt if name in bound}
        return {**bound, **exempting}

    def names(self, arguments: Mapping[str, Any] | None) -> tuple[str, ...]:
        """What to enforce on a request: the default and what its arguments add, in the order of `files`.

        A request with `{"prod_check": "canary"}` gets the list `CHECK` as well.

        Raises:
            ProdError: what `requested` refuses, or a name that the server did not load. Other names are not told, since
                they may be other clients'.
        """
        added = requested(arguments)
        for name in added:
            if name not in self.files:
                raise ProdError(
                    f"{ARGUMENT}: expected names of blocklists that this server has, got {_short(name)}: ask whoever "
                    "runs the server for the name"
                )
        names = tuple(name for name in self.files if name in added or name in self.default)
        return (*names, CHECK) if arguments and arguments.get(CHECK) == CANARY else names

    def unescapes(self, arguments: Mapping[str, Any] | None, *, is_structured: bool) -> bool:
        """Whether a request with these arguments is matched with JSON's escapes decoded as well."""
        return is_structured or self.json == "always" or bool(arguments and arguments.get(JSON))


def requested(arguments: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The names in a request's arguments: `{"prod_blocklists": ["gpl"]}`, or one name as a string.

    Raises:
        ProdError: something else under that key, or a key that looks like it.
    """
    if not arguments:
        return ()
    for key in arguments:
        if key not in (ARGUMENT, CHECK, JSON, ENDLESS) and isinstance(key, str) and is_close(key):
            meant = closest(key[:64].casefold(), [ARGUMENT, JSON], 0.8) or ARGUMENT
            raise ProdError(
                f"expected the argument {meant}, got {_short(key)}; did you mean {meant!r}? A request may add to "
                "what is enforced, and no more"
            )
    if arguments.get(JSON, True) not in (True, "true"):
        raise ProdError(
            f"{JSON}: expected true, got {_short(arguments[JSON])}: leave it out; a request may add to what is "
            "enforced, and no more"
        )
    if arguments.get(CHECK, CANARY) not in (CANARY, REPORT):
        raise ProdError(f"{CHECK}: expected {CANARY!r} or {REPORT!r}, got {_short(arguments[CHECK])}")
    names = arguments.get(ARGUMENT, [])
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ProdError(f"{ARGUMENT}: expected a list of names, got {_short(names)}")
    return tuple(names)


def is_close(key: str) -> bool:
    """Whether a key is a wrong spelling of `prod_blocklists`, or begins like it."""
    plain = key[:64].casefold().replace("-", "_")
    letters = "".join(filter(str.isalnum, plain))
    close = closest(letters, [ARGUMENT.replace("_", "")], 0.8)
    return plain.startswith("prod_") or "blocklist" in letters or close is not None


def is_variable(name: str) -> bool:
    """Whether an environment variable is `PROD_BLOCKLISTS`, or a wrong spelling of it."""
    return closest(name.casefold(), [ENVIRONMENT.casefold()], 0.95) is not None


def is_meant(key: str) -> bool:
    """Whether a key of somebody else's names what a request may ask for; nearly right counts for `prod_blocklists`."""
    plain = key[:64].casefold().replace("-", "_")
    return plain in (ARGUMENT, JSON, CHECK) or closest(plain, [ARGUMENT], 0.8) is not None


def _short(value: object) -> str:
    text = repr(value[:80] if isinstance(value, str | list | tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unknown(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return f"expected one of {', '.join(map(repr, names))}, got {name!r}{did_you_mean(name, names)}"
