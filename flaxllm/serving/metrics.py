"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from flaxllm.serving.scheduler import Scheduler

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self, scheduler: Scheduler | None = None):
        self._registry = CollectorRegistry()
        own = {"registry": self._registry, "namespace": "flaxllm"}
        self.requests = Counter("requests", "Requests answered.", ("path", "code"), **own)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts and of embedded texts.", **own)
        self.completion_tokens = Counter("completion_tokens", "Tokens written.", **own)
        times = own | {"buckets": _SECONDS}
        self.first_token = Histogram("time_to_first_token_seconds", "From a request to its first token.", **times)
        self.latency = Histogram("request_seconds", "From a request to the end of its answer.", ("path",), **times)
        if scheduler is not None:
            batch = scheduler.batch
            for name, what, value in (
                ("queue_length", "Texts that wait for a slot.", lambda: scheduler.num_waiting),
                ("active_slots", "Slots in use.", lambda: batch.num_active),
                ("slots", "Slots there are.", lambda: batch.num_rows),
                ("copied_tokens", "Tokens of prompts copied from another slot rather than read.", lambda: batch.num_copied),
            ):
                Gauge(name, what, **own).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
