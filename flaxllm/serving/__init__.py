"""A server that speaks OpenAI's API. It needs the extra `[serve]`."""

from typing import Any

from flaxllm.errors import InputError


def serve(path: Any, **options: Any) -> None:
    """Serve a checkpoint, as `flaxllm.serving.run.serve` describes.

    Raises:
      InputError: what that raises, or a package that is missing.
    """
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"serving needs {error.name}, which is not installed: pip install 'flaxllm[serve]'") from error
    from flaxllm.serving import run

    run.serve(path, **options)
