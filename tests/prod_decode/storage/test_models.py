"""Models by name: where nothing is found, and where there is no network."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import close_session

from prod_decode.errors import ProdError
from prod_decode.storage import models
from prod_decode.storage.models import in_hub_format, load_model, load_tokenizer, loading, require_name, save_model
from tests.tiny import save_tiny_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The names whose address was asked for, none of which is known; without a proxy."""
    names: list[object] = []

    def unknown(host: object, *_: object, **__: object) -> None:
        names.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return names


def test_without_a_network_an_unknown_name_is_not_asked_for_again_and_again(asked: list[object]) -> None:
    for load in (load_tokenizer, load_model):
        asked.clear()
        with pytest.raises(ProdError, match=r"cannot load the model 'no/such': .*expected a hub id, a directory"):
            load("no/such")
        assert len(asked) <= 2  # once by us, and what huggingface_hub asks for itself


def test_behind_a_proxy_the_hub_is_left_to_it(asked: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ProdError, match="cannot load the model 'no/such'"):
        load_tokenizer("no/such")
    assert not asked


def test_behind_a_proxy_that_leads_nowhere_nothing_is_asked_for_again_and_again(
    asked: list[object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """huggingface_hub waits 46 s in all between its attempts, and says so."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://localhost:9")
    close_session()
    with pytest.raises(ProdError, match="cannot load the model 'no/such'"):
        load_tokenizer("no/such")
    close_session()
    assert "Retry" not in caplog.text


@pytest.mark.parametrize("name", ["bundeld", "Bundled", "bundle", "bundled-model"])
def test_what_is_nearly_the_bundled_model_is_told_at_once(asked: list[object], name: str) -> None:
    for load in (load_tokenizer, load_model, require_name):
        with pytest.raises(ProdError, match=rf"^cannot load the model '{name}': .*; did you mean 'bundled'\?$"):
            load(name)
    assert not asked


def test_other_names_of_one_word_are_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpt2", "distilgpt2", "some/bundled"):
        require_name(name)
    monkeypatch.chdir(tmp_path)
    save_tiny_model(Path("bundle"))
    require_name("bundle")


def test_a_directory_needs_no_network(asked: list[object], tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    model, tokenizer = load_model(folder)
    assert model.config.vocab_size >= len(tokenizer)
    assert not asked


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such.gguf", "cannot read the model no/such.gguf: no such file"), ("", "cannot load the model ''")],
    ids=["gguf", "empty"],
)
def test_what_cannot_be_loaded(asked: list[object], name: str, message: str) -> None:
    with pytest.raises(ProdError, match=message):
        load_tokenizer(name)
    assert len(asked) <= 1


@pytest.mark.slow
def test_a_gguf_file_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model("bundled", dtype="float32")
    loaded: list[str] = []

    def load(name: str, **_: object) -> tuple[object, object]:
        loaded.append(name)
        return model, tokenizer

    monkeypatch.setattr(models, "load_model", load)
    folder = tmp_path / "deep" / "model"
    assert in_hub_format("bundled", folder) == in_hub_format("bundled", folder) == str(folder)
    assert loaded == ["bundled"]
    found, found_tokenizer = load_model(str(folder), dtype="float32")
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    text = "def f(x):\n    return x  # <|im_end|> é\t"
    assert found_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert found_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert found_tokenizer.all_special_ids == tokenizer.all_special_ids


@pytest.mark.slow
def test_a_gguf_file_that_another_process_wrote_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model("bundled", dtype="float32")
    folder = tmp_path / "model"

    def load(*_: object, **__: object) -> tuple[object, object]:
        save_model(*loaded, folder)  # the other one, which began later
        (folder / "README.md").write_text("the other's")
        return loaded

    monkeypatch.setattr(models, "load_model", load)
    assert in_hub_format("bundled", folder) == str(folder)
    assert (folder / "README.md").read_text() == "the other's"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ProdError, match=r"^cannot write .*/model: it exists, name a new directory$"):
        save_model(*loaded, folder)


def test_a_model_in_the_hubs_format_stays_where_it_is(tmp_path: Path) -> None:
    assert in_hub_format("some/name", tmp_path / "model") == "some/name"
    assert not (tmp_path / "model").exists()


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    class Unwritable:
        def save_pretrained(self, folder: str) -> None:
            Path(folder, "half").touch()
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        save_model(Unwritable(), Unwritable(), tmp_path / "model")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ProdError, match=r"cannot write .*/file/deep/model: Not a directory"):
        save_model(Unwritable(), Unwritable(), tmp_path / "file" / "deep" / "model")

    class NoRoom:
        def save_pretrained(self, folder: str) -> None:
            Path(folder, "half").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ProdError, match=r"^cannot write .*/model: No space left on device$"):
        save_model(NoRoom(), NoRoom(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_that_leads_nowhere_yet_gets_its_model(tmp_path: Path) -> None:
    class Model:
        def save_pretrained(self, folder: str) -> None:
            Path(folder, "config.json").write_text("{}")

    (tmp_path / "current").symlink_to("versions/2")
    assert save_model(Model(), Model(), tmp_path / "current") == tmp_path / "current"
    assert (tmp_path / "current").is_symlink()
    assert [path.name for path in (tmp_path / "versions" / "2").iterdir()] == ["config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "versions"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda d: [path.unlink() for path in d.iterdir()], r"the directory has no config\.json \(expected a hub id"),
        (lambda d: (d / "config.json").write_text("[1]"), "TypeError: .* must be a mapping, not list"),
        (lambda d: (d / "model.safetensors").write_bytes(b""), "SafetensorError: .*header too small"),
        (lambda d: truncate(d / "model.safetensors", 30_000), "SafetensorError: .*incomplete metadata"),
        (lambda d: truncate(d / "tokenizer.json", 300), "Unterminated string"),
        # The library goes on in the next lines; the first one ends with "from one of: ".
        (lambda d: (d / "tokenizer.json").unlink(), r"tokenizer from one of: \(1\) .* sentencepiece or tiktoken"),
        # Those of the last layer would be made at random, and the library goes on.
        (lambda d: change(d, num_hidden_layers=3), r"9 of its weights are not in its files.* model\.layers\.2\."),
        (lambda d: change(d, hidden_size=64), "20 of its weights have another shape in its files"),
    ],
    ids=["empty", "list", "no weights", "cut weights", "cut tokenizer", "no tokenizer", "layer", "shape"],
)
def test_a_damaged_directory_is_one_line(
    tmp_path: Path, prepare: Callable[[Path], object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    save_tiny_model(tmp_path / "m")
    prepare(tmp_path / "m")
    capfd.readouterr()
    with pytest.raises(ProdError, match=f"^cannot load the model '.*/m': .*{message}") as caught:
        load_model(str(tmp_path / "m"))
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == ""


def test_a_directory_with_a_model_and_an_adapter_is_neither(tmp_path: Path) -> None:
    """transformers would put the adapter on the model, into which it may be merged already."""
    folder = Path(save_tiny_model(tmp_path / "m"))
    (folder / "adapter_config.json").write_text("{}")
    for load in (load_tokenizer, load_model):
        with pytest.raises(ProdError, match="m: expected a model or an adapter, it holds both, and"):
            load(str(folder))


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def change(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/no/such", "no such directory"),
        ("a/b/c", "no such directory"),
        ("tests/tiny.py", "it is a file"),
        ("x" * 5000, "no such directory"),
        ("x\0y", "no such directory"),
    ],
    ids=["absolute", "deep", "file", "long", "NUL"],
)
def test_what_is_no_hub_id_is_not_asked_for(asked: list[object], name: str, reason: str) -> None:
    for load in (load_tokenizer, load_model):
        with pytest.raises(ProdError, match=f"cannot load the model '.*': {reason}") as caught:
            load(name)
        assert len(str(caught.value)) < 300
    assert not asked


def test_loading_a_model_prints_nothing_into_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither bars nor advice nor warnings of what will change; and leaves the libraries as they were."""
    from transformers.utils import logging as hf_logging

    folder = save_tiny_model(tmp_path)
    hf_logging.set_verbosity_warning()
    hf_logging.enable_progress_bar()
    capfd.readouterr()
    with loading("x"):
        warnings.warn("a function is renamed", FutureWarning, stacklevel=1)
    load_model(folder)
    assert capfd.readouterr() == ("", "")
    assert hf_logging.get_verbosity() == logging.WARNING
    assert hf_logging.is_progress_bar_enabled()


def test_on_a_terminal_there_are_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as hf_logging

    hf_logging.enable_progress_bar()
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    with loading("x"):
        assert hf_logging.is_progress_bar_enabled()
    monkeypatch.setattr("sys.stderr", None)  # closed
    with loading("x"):
        assert not hf_logging.is_progress_bar_enabled()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_model_is_as_readable_as_any_file_of_the_user(tmp_path: Path, mask: int) -> None:
    """safetensors 0.7 leaves private files."""

    class Private:
        def save_pretrained(self, folder: str) -> None:
            file = Path(folder) / f"{id(self)}.safetensors"
            file.touch(mode=0o600)

    before = os.umask(mask)
    try:
        save_model(Private(), Private(), tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o666 & ~mask}
