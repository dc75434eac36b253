"""Where a model's files are: a path, the cache in offline mode, or a hub, here one that this file serves on localhost."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from flaxllm.data.hub import resolve
from flaxllm.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATTERNS = ["config.json", "*.safetensors"]
FILES = {"config.json": b'{"a": 1}', "model.safetensors": b"\0" * 9, "pytorch_model.bin": b"never", "a/tf.h5": b"never"}
REFUSALS = {  # status and X-Error-Code of the hub's answer, by the model asked for
    "org/gated": (403, "GatedRepo"),
    "org/none": (404, "RepoNotFound"),
    "org/private": (401, "RepoNotFound"),
    "org/busy": (503, ""),
}


def complaint(path_or_id: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        resolve(path_or_id, PATTERNS)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


def set_endpoint(monkeypatch, endpoint: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache. Nothing is fetched: the hub is offline, and it is nowhere but on this machine."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def asked(cache, monkeypatch) -> Iterator[list[str]]:
    """A hub with the model org/name that can be asked; the paths that it was asked for."""
    paths: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            paths.append(f"{self.command} {self.path}")
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        set_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield paths
        server.shutdown()


def answer(path: str) -> tuple[int, dict[str, str], bytes]:
    """The hub's answer to a request: status, headers and body."""
    parts = path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
    model, action, rest = "/".join(parts[:2]), parts[2], parts[3:]
    if model in REFUSALS:
        status, code = REFUSALS[model]
        return status, {"X-Error-Code": code}, b""
    if action == "revision":
        if rest[0] not in ("main", "v1", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        return 200, {}, json.dumps({"id": model, "sha": COMMIT, "siblings": []}).encode()
    if action == "tree":
        tree = [{"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040}"} for name, data in FILES.items()]
        return 200, {}, json.dumps(tree).encode()
    data = FILES["/".join(rest[1:])]
    return 200, {"ETag": f'"{len(data):040}"', "X-Repo-Commit": COMMIT}, data


def cached(cache: Path, folder: str, revision: str = "main", commit: str = COMMIT) -> Path:
    """A model in the cache, laid out as the client does it; gives the folder of its files."""
    ref = cache / folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    snapshot = cache / folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_a_local_path_is_given_as_it_is(cache, tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "file.gguf").touch()
    cached(cache, "models--org--name")
    assert resolve("org/name", PATTERNS) == Path("org/name")
    assert resolve(tmp_path / "org" / "file.gguf", PATTERNS) == tmp_path / "org" / "file.gguf"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org", PATTERNS) == tmp_path / "org"


def test_a_cached_model_is_found_without_a_hub(cache):
    snapshot = cached(cache, "models--org--name")
    assert resolve("org/name", PATTERNS) == snapshot
    assert resolve(f"org/name@{COMMIT}", PATTERNS) == snapshot
    assert resolve(Path("org/name"), PATTERNS) == snapshot


def test_a_model_without_an_organisation_is_found(cache):
    snapshot = cached(cache, "models--gpt2")
    assert resolve("gpt2", PATTERNS) == snapshot


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1"])
def test_a_revision_is_its_own_snapshot(cache, revision):
    cached(cache, "models--org--name")
    snapshot = cached(cache, "models--org--name", revision, commit=COMMIT[::-1])
    assert resolve(f"org/name@{revision}", PATTERNS) == snapshot


def test_what_is_not_in_the_cache_is_not_looked_for_offline(cache):
    cached(cache, "models--org--name")
    for name in ("org/other", "org/name@v2"):
        assert complaint(name) == (
            f"there is no path {name!r}, and the model of that name is not whole in the cache while HF_HUB_OFFLINE keeps "
            "it from being fetched: unset it once, or give a path"
        )


NO_IDS = ["", "a/b/c", "no such folder", "./name", "/no/name", "~/name", "org/", "org--name/x", "a\0b", "x" * 300, "a\nb"]
NO_REVISIONS = ["org/name@", "org/name@../../x", "org/name@/etc", "org/name@a/../b", "org/name@v1@v2", "org/name@a b"]


@pytest.mark.parametrize("name", [*NO_IDS, *NO_REVISIONS], ids=repr)
def test_what_is_neither_a_path_nor_an_id_is_refused_without_a_hub(cache, name):
    assert complaint(name).startswith(f"there is no path {name!r}, and it is no model id such as 'org/name': ")


def test_the_nearest_path_is_named(cache, tmp_path):
    (tmp_path / "bert-base").mkdir()
    assert complaint(tmp_path / "bert-bsae").endswith(f"did you mean {str(tmp_path / 'bert-base')!r}?")


def test_only_the_files_that_were_asked_for_are_fetched_and_only_once(asked, cache):
    folder = resolve("org/name", PATTERNS)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: FILES[name] for name in PATTERNS[:1] + ["model.safetensors"]}
    assert folder.is_relative_to(cache) and any("resolve" in path for path in asked)
    asked.clear()
    assert resolve("org/name@v1", PATTERNS) == folder
    assert asked and not any("resolve" in path for path in asked)


def test_a_model_without_a_file_that_was_asked_for_is_refused(asked):
    with pytest.raises(InputError, match=r"the hub's model 'org/name' has no file that is wanted of it: expected \*.gguf, a.txt"):
        resolve("org/name", ["*.gguf", "a.txt"])


SAID = {
    "org/gated": "the model 'org/gated' is gated: accept its terms on its page on the hub, and log in with `hf auth login`",
    "org/none": "there is no path 'org/none', and the hub has no such model for you: check the name, or log in",
    "org/private": "there is no path 'org/private', and the hub has no such model for you: check the name, or log in",
    "org/name@v9": "the hub has no such revision of the model 'org/name@v9': name a branch, a tag or a commit after the @",
    "org/busy": "there is no path 'org/busy', and fetching the model of that name failed (Server error '503",
}


@pytest.mark.parametrize("name", SAID)
def test_what_the_hub_refuses_is_said(asked, name):
    assert complaint(name).startswith(SAID[name]) and asked


def test_a_hub_that_cannot_be_reached_is_said(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    message = complaint("org/name")
    assert "fetching the model of that name failed (" in message and "Connection refused): check the connection" in message
    snapshot = cached(cache, "models--org--name")
    assert resolve("org/name", PATTERNS) == snapshot
