"""What an operator may configure and a request may ask for, and the messages for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prod_decode import Blocklist, Entry, Hit, ProdError
from prod_decode.serving.settings import Settings, requested
from prod_decode.tokens.vocabulary import Vocabulary

FILES = {"gpl": "gpl.prod", "insecure": "insecure.prod", "ours": "ours.prod"}


def test_settings_from_either_source() -> None:
    value = {"blocklists": FILES, "default": ["ours", "gpl"]}
    assert Settings.find({"prod": value, "other": 1}, {}) == Settings(FILES, ("gpl", "ours"))
    assert Settings.find({}, {"PROD_BLOCKLISTS": json.dumps(value)}) == Settings(FILES, ("gpl", "ours"))
    assert Settings.find(None, {"PROD_BLOCKLISTS": json.dumps({"blocklists": FILES})}).default == tuple(FILES)
    assert Settings.parse({"blocklists": FILES, "default": []}, "here").default == ()
    assert Settings.parse({"blocklists": FILES}, "here").exempt_prompt == ()
    assert Settings.parse({"blocklists": FILES, "exempt_prompt": ["ours"]}, "here").exempt_prompt == ("ours",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"here: expected an object such as \{.*\}, got \[\]"),
        (
            {"blocklist": FILES},
            r"here: expected the keys 'blocklists', .*, 'audit_log' and 'audit_text', got 'blocklist': remove",
        ),
        ({"blocklists": FILES, "json": "never"}, r"here: json: expected 'auto', .* or 'always', got 'never'"),
        ({"blocklists": FILES, "audit_log": 1}, r"here: audit_log: expected the name of a file, got 1"),
        ({"blocklists": FILES, "audit_log": ""}, r"here: audit_log: expected the name of a file, got ''"),
        (
            {"blocklists": FILES, "audit_text": True},
            r"here: audit_text: expected true or false beside audit_log, got true without an audit_log",
        ),
        (
            {"blocklists": FILES, "audit_log": "a", "audit_text": "yes"},
            r"here: audit_text: expected true or false beside audit_log, got 'yes'",
        ),
        ({"blocklists": FILES, "json": True}, r"here: json: expected 'auto', .* or 'always', got True"),
        ({}, r"here: blocklists: expected names and files as in .*, got None"),
        ({"blocklists": {}}, r"here: blocklists: expected names and files as in .*, got \{\}"),
        ({"blocklists": ["gpl.prod"]}, r"here: blocklists: expected names and files as in .*, got \['gpl.prod'\]"),
        ({"blocklists": {"gpl": 1}}, r"here: blocklists: expected a name and a file, got 'gpl': 1"),
        ({"blocklists": {"": "x"}}, r"here: blocklists: expected a name and a file, got '': 'x'"),
        ({"blocklists": FILES, "default": "gpl"}, r"here: default: expected a list of names, \[\] for none, got 'gpl'"),
        (
            {"blocklists": FILES, "default": ["gpi"]},
            r"here: default: expected one of 'gpl', 'insecure', 'ours', got 'gpi'; did you mean 'gpl'\?",
        ),
    ],
)
def test_settings_that_are_refused(value: object, message: str) -> None:
    with pytest.raises(ProdError, match=message) as caught:
        Settings.parse(value, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        ({}, {}, r"expected --additional-config '\{\"prod\": .*\}' or PROD_BLOCKLISTS='.*', got neither: say which"),
        ({"prod": {}}, {"PROD_BLOCKLISTS": "{}"}, "expected one of --additional-config and PROD_BLOCKLISTS, got both"),
        ({}, {"PROD_BLOCKLISTS": "gpl.prod"}, r"PROD_BLOCKLISTS: expected JSON such as .*, got 'gpl.prod' \(Expecting"),
        (
            {},
            {"PROD_BLOCKLISTS": '{"blocklists": {"gpl": "a.prod", "gpl": "b.prod"}}'},
            r"PROD_BLOCKLISTS: expected JSON .*the key 'gpl' stands there twice",
        ),
        ({}, {"PROD_BLOCKLISTS": "{}"}, "PROD_BLOCKLISTS: blocklists: expected names and files"),
        ({"prod": 1}, {}, '--additional-config, "prod": expected an object'),
        ({}, {"PROD_DATA": "/data"}, "got neither: say which compiled blocklists"),
        ({}, {"PROD_BLOCKLIST": "{}"}, "got PROD_BLOCKLIST: say which compiled blocklists"),
    ],
)
def test_sources_that_are_refused(options: dict[str, Any], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        Settings.find(options, environment)


def test_an_audit_log_is_opened_or_the_server_does_not_start(tmp_path: Path) -> None:
    assert Settings.parse({"blocklists": FILES}, "here").open_log() is None
    path = tmp_path / "hits.jsonl"
    found = Settings.parse({"blocklists": FILES, "audit_log": str(path), "audit_text": True}, "here")
    log = found.open_log()
    assert log is not None
    with pytest.raises(ProdError, match=r"^audit_log: .*hits\.jsonl: expected an audit log that nobody writes"):
        found.open_log()
    log(Hit(0, 3, "banned", "e", token_id=7))
    log.close()
    assert json.loads(path.read_text())["token_id"] == 7


def test_a_request_adds_and_never_removes() -> None:
    settings = Settings(FILES, ("insecure",))
    assert settings.names(None) == ("insecure",)
    assert settings.names({"unrelated": 1}) == ("insecure",)
    assert settings.names({"prod_blocklists": []}) == ("insecure",)
    assert settings.names({"prod_blocklists": ["ours", "gpl", "ours"]}) == tuple(FILES)
    assert settings.names({"prod_blocklists": "gpl"}) == ("gpl", "insecure")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prod_blocklists": ["gpl", "osr"]}, r"prod_blocklists: expected names of .* this server has, got 'osr': ask"),
        ({"prod_blocklists": [1]}, r"prod_blocklists: expected a list of names, got \[1\]"),
        ({"prod_blocklists": {"gpl": False}}, r"prod_blocklists: expected a list of names, got \{'gpl': False\}"),
        (
            {"prod_default": []},
            r"expected the argument prod_blocklists, got 'prod_default'; did you mean 'prod_block.*'",
        ),
        *(
            ({key: ["gpl"]}, f"expected the argument prod_blocklists, got '{key}'; did you mean 'prod_blocklists'")
            for key in (
                "Prod_blocklists",
                "prod-blocklists",
                "PROD_BLOCKLISTS",
                "blocklists",
                "blocklist",
                "prodblocklist",
            )
        ),
        ({"pord_blocklsts": ["gpl"]}, r"got 'pord_blocklsts'; did you mean 'prod_blocklists'"),
        ({"prod_jsn": True}, r"expected the argument prod_json, got 'prod_jsn'; did you mean 'prod_json'\?"),
        ({"Prod-JSON": True}, r"expected the argument prod_json, got 'Prod-JSON'"),
        ({"prod_json": False}, r"prod_json: expected true, got False: leave it out"),
        ({"prod_json": "x" * 99}, r"prod_json: expected true, got 'xxx"),
        ({"prod_check": "cannary"}, "prod_check: expected 'canary' or 'report', got 'cannary'"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ProdError, match=message):
        Settings(FILES, ()).names(arguments)


def test_other_arguments_pass() -> None:
    for key in ("kv_transfer_params", "product", "block_size", "produce", "blacklist", "priority"):
        assert Settings(FILES, ()).names({key: 1}) == ()


@pytest.mark.parametrize(
    "arguments",
    [
        {"prod_blocklists": ["gp"]},
        {"prod_blocklists": ["x" * 1_000_000]},
        {"prod_blocklists": ["gpl"] * 100_000 + [1]},
        {"prod_" + "x" * 1_000_000: 1},
        {"prod_check": "x" * 1_000_000},
    ],
)
def test_a_refusal_is_short_and_names_no_list(arguments: dict[str, Any]) -> None:
    with pytest.raises(ProdError) as caught:
        Settings({"secret-list": "a.prod", "gpl-v2": "b.prod"}, ()).names(arguments)
    assert len(str(caught.value)) < 300
    assert "secret" not in str(caught.value)
    assert "gpl-v2" not in str(caught.value)


def test_the_canary_is_a_list_beside_the_others() -> None:
    settings = Settings(FILES, ("gpl",))
    assert settings.names({"prod_check": "canary"}) == ("gpl", "prod_check")
    assert settings.names({"prod_check": "report", "prod_blocklists": "ours"}) == ("gpl", "ours")
    with pytest.raises(ProdError, match="blocklists: 'prod_check' is the name of the canary: use another one"):
        Settings.parse({"blocklists": {"prod_check": "a.prod"}}, "here")


def test_what_is_matched_with_escapes_decoded() -> None:
    auto = Settings.parse({"blocklists": FILES, "json": "auto"}, "here")
    assert auto == Settings.parse({"blocklists": FILES}, "here")
    assert not auto.unescapes(None, is_structured=False)
    assert not auto.unescapes({"prod_blocklists": ["gpl"]}, is_structured=False)
    assert auto.unescapes(None, is_structured=True)
    assert auto.unescapes({"prod_json": True}, is_structured=False)
    assert auto.unescapes({"prod_json": 1}, is_structured=False)
    assert auto.names({"prod_json": 1}) == auto.names({"prod_json": True}) == tuple(FILES)
    always = Settings.parse({"blocklists": FILES, "json": "always"}, "here")
    assert always.unescapes(None, is_structured=False)


def test_requested_needs_no_settings() -> None:
    assert requested({}) == ()
    assert requested({"prod_blocklists": ["a", "b"]}) == ("a", "b")


def test_load_names_the_file_that_is_wrong(tmp_path: Path) -> None:
    Blocklist.compile([Entry("eval(")]).save(tmp_path / "a.prod")
    settings = Settings({"a": str(tmp_path / "a.prod")}, ())
    assert [match.entry_id for match in settings.load()["a"].scan("eval(")] == ["eval("]
    (tmp_path / "b.prod").write_text("foreign")
    with pytest.raises(ProdError, match="blocklist 'b': "):
        Settings({**settings.files, "b": str(tmp_path / "b.prod")}, ()).load()


def test_a_list_is_exempt_where_the_settings_say_so() -> None:
    vocabulary = Vocabulary.from_bytes([b"a", b"b", b"</s>"], eos_ids=[2])
    lists = {name: Blocklist.compile([Entry("ab" * 20, policy="quote", max_quote=6)]) for name in FILES}
    bound = Settings(FILES, (), exempt_prompt=("insecure",)).bind(lists, vocabulary)
    assert {name: matcher.exempts_prompts for name, matcher in bound.items()} == {
        "gpl": False,
        "insecure": True,
        "ours": False,
    }
    assert list(bound) == list(FILES)
