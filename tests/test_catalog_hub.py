"""Models that are named by a hub id."""

import sys

import pytest

from macai.catalog import locate_model
from macai.errors import FetchError, ModelError


def ignore(what, done, total):
    pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Has snapshot_download return a folder or raise an error."""
    import huggingface_hub

    def install(outcome):
        def download(name, *, allow_patterns, ignore_patterns):
            if isinstance(outcome, BaseException):
                raise outcome
            return str(outcome)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    return install


def response(status: int):
    from huggingface_hub import errors

    http = sys.modules[errors.Response.__module__.partition(".")[0]]  # httpx, whatever its name
    return http.Response(status, request=http.Request("GET", "https://example.org"))


def test_a_hub_id_is_downloaded(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    hub(tmp_path)
    assert locate_model("some-owner/smollm2-135m", progress=ignore) == tmp_path


def test_a_hub_model_without_safetensors_is_refused(hub, tmp_path):
    hub(tmp_path)
    with pytest.raises(ModelError, match=r"holds no config.json and no model\*.safetensors"):
        locate_model("owner/name", progress=ignore)


def hub_failures():
    from huggingface_hub import errors

    return [
        (errors.GatedRepoError("no", response=response(403)), "accept terms", "hf auth login"),
        (errors.RepositoryNotFoundError("no", response=response(404)), "neither a", "private"),
        (errors.LocalEntryNotFoundError("Got: x\nlong story"), "downloaded: Got: x$", "network"),
        (errors.OfflineModeIsEnabled("offline"), "downloaded: offline$", "network"),
        (errors.HTTPError("proxy says no"), "proxy says no", "network"),
        (RuntimeError(""), "downloaded: RuntimeError", "network"),
    ]


@pytest.mark.parametrize(("error", "message", "hint"), hub_failures())
def test_a_hub_that_refuses_is_an_error_with_a_hint(hub, error, message, hint):
    hub(error)
    with pytest.raises(FetchError, match=message) as caught:
        locate_model("owner/name", progress=ignore)
    assert hint in (caught.value.hint or "")


def test_an_unreachable_hub_is_an_error_and_what_is_cached_is_found(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FetchError, match="owner/name: no such folder here, and it cannot be"):
        locate_model("owner/name", progress=ignore)
