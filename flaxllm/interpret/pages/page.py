"""A page: its style, script and data in one file, and a policy that lets nothing else in."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float

from flaxllm.errors import InputError

MOST_BYTES = 20_000_000


def render(name: str, title: str, data: Mapping[str, Any]) -> str:
    """The page "attention" or "lens" around its data, which are JSON.

    Only this style and this script have the digests that the page's policy names, and nothing may be fetched: whatever the
    data hold is text.
    """
    style = _read("page.css")
    script = _read("page.js") + _read(f"{name}.js")
    allowed = f"style-src {_digest(style)}; script-src {_digest(script)}"
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'",
        "style": style,
        "body": _read(f"{name}.html"),
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": script,
    }
    return re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], _read("page.html"))


def pack(weights: Float[np.ndarray, "..."]) -> dict[str, Any]:
    """Numbers from 0 to 1 as 16 bits each, in base64: exact to 1/131070."""
    whole = np.rint(np.asarray(weights, np.float64) * 65535).astype("<u2")
    return {"shape": list(weights.shape), "weights": base64.b64encode(whole.tobytes()).decode()}


def check_size(num_bytes: float, tokens: int, growth: int) -> None:
    """Raise InputError where a page of so many bytes is too large; they grow with a power of the number of tokens."""
    if num_bytes > MOST_BYTES:
        fits = int(tokens * (MOST_BYTES / num_bytes) ** (1 / growth))
        raise InputError(
            f"{tokens} tokens make a page of {num_bytes / 1e6:.0f} MB, and one of {MOST_BYTES / 1e6:.0f} MB is the largest that "
            f"a browser shows well: shorten the text to about {fits} tokens"
        )


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """How a Content-Security-Policy names a style or script within the page (CSP 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
