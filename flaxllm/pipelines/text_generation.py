"""Text that goes on from a prompt, or answers a chat."""

from collections.abc import Mapping, Sequence
from typing import Any

from flaxllm.data.json_file import brief
from flaxllm.errors import InputError
from flaxllm.pipelines.generation import write_texts
from flaxllm.pipelines.loaded import Loaded
from flaxllm.pipelines.writing import prompt_tokens

_DEFAULTS = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7, "top_k": 50}  # those of transformers

Chat = Sequence[Mapping[str, Any]]


def text_generation(
    at: Loaded, inputs: str | Chat | Sequence[str] | Sequence[Chat], *, return_full_text: bool = True, **settings: Any
) -> list:
    """What the model writes after each prompt: `[{"generated_text": ...}]`, of `num_return_sequences` texts, with the prompt
    unless `return_full_text` is False.

    A chat, a list of messages `{"role": ..., "content": ...}`, gives the messages with the assistant's answer as the last one.
    `settings` are those of `flaxllm.generate` by Hugging Face's names, with `do_sample` and `seed`.

    Raises:
      InputError: a prompt is neither; a chat ends with the assistant's own message; or as `flaxllm.generate`.
    """
    single = isinstance(inputs, str) or _is_chat(inputs)
    prompts = [inputs] if single else list(inputs)
    tokens = [_tokens(at, prompt, number) for number, prompt in enumerate(prompts)]
    results = []
    for prompt, texts in zip(prompts, write_texts(at, tokens, _DEFAULTS, settings)):
        results.append([{"generated_text": _with_prompt(prompt, text) if return_full_text else text} for text in texts])
    return results[0] if single else results


def _is_chat(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) > 0 and all(isinstance(message, Mapping) for message in given)


def _tokens(at: Loaded, prompt: Any, number: int) -> Sequence[int]:
    if isinstance(prompt, str):
        return prompt_tokens(at.model, at.tokenizer, prompt)
    if not _is_chat(prompt):
        raise InputError(f"prompt {number} is {brief(prompt)}: expected a text, or a list of messages with role and content")
    if prompt[-1].get("role") == "assistant":
        raise InputError(f"chat {number} ends with the assistant's own message: end it with the one to answer")
    return at.tokenizer.encode_chat(prompt).tokens.tolist()


def _with_prompt(prompt: str | Chat, text: str) -> str | list:
    return prompt + text if isinstance(prompt, str) else [*prompt, {"role": "assistant", "content": text}]
