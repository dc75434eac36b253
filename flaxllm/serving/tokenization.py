"""`/tokenize`, `/detokenize` and `/tokenizer_info`: the tokenizer over HTTP, in the form that vLLM gave these routes."""

from typing import Any

from flaxllm.data.tokenizers import ROLES
from flaxllm.serving.errors import ApiError
from flaxllm.serving.fields import Field, is_whole, read_fields, switch, text
from flaxllm.serving.service import Service

_TOKENIZE = {"model": text(), "prompt": text(), "add_special_tokens": switch(True), "return_token_strs": switch()}
_TOKENS = Field(None, lambda x: isinstance(x, list) and all(map(is_whole, x)), "a list of token ids")
_DETOKENIZE = {"model": text(), "tokens": _TOKENS}


def tokenize(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """The tokens of a text, as a prompt gets them. What spells a special token is only text, unless it is the whole of a prompt
    that no special tokens are added to: so clients ask for the id of a token that they know by name, as lm-eval does."""
    given = read_fields(body, _TOKENIZE, {"messages": "only texts are made tokens: render the chat first"})
    service.check_name(given["model"])
    _check_given(given, "prompt")
    tokenizer, prompt = service.tokenizer, given["prompt"]
    if prompt in tokenizer.special_tokens and not given["add_special_tokens"]:
        tokens = [tokenizer.backend.token_to_id(prompt)]
    else:
        tokens = service.encode([prompt], "prompt", given["add_special_tokens"])[0].tolist()
    strings = {"token_strs": list(map(service.spelling.text, tokens))} if given["return_token_strs"] else {}
    return {"count": len(tokens), "max_model_len": service.max_len, "tokens": tokens} | strings


def detokenize(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """The text of tokens, special ones spelt out."""
    given = read_fields(body, _DETOKENIZE, {})
    service.check_name(given["model"])
    _check_given(given, "tokens")
    tokens = service.check_tokens(given["tokens"], "tokens")
    return {"prompt": service.tokenizer.decode(tokens[tokens < service.tokenizer.vocab_size])}


def info(service: Service) -> dict[str, Any]:
    """What a client may want to know of the tokenizer: its special tokens, as text and as ids, and its chat template."""
    tokenizer = service.tokenizer
    ids = {role: getattr(tokenizer, role) for role in ROLES}
    spelt = {f"{role}_token": None if index is None else tokenizer.decode([index]) for role, index in ids.items()}
    about = {"vocab_size": tokenizer.vocab_size, "model_max_length": service.max_len, "chat_template": tokenizer.chat_template}
    return spelt | {f"{role}_token_id": index for role, index in ids.items()} | about


def _check_given(given: dict[str, Any], name: str) -> None:
    if given[name] is None:
        raise ApiError(f"{name} is missing", name)
