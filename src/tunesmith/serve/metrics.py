"""Prometheus metrics under vLLM's names with our prefix, plus what only the layer that knows the contract can count.

What lives here: names, labels, buckets. What does not: when they are counted (`serve.answer`, `serve.app`).
The label `model_name` is the adapter's id for requests to the adapter: vLLM 0.32 counts those under the base.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
"""As vLLM 0.32."""
FIRST_TOKEN_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)


class ServerMetrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        model = ["model_name"]
        self.running = Gauge("tunesmith_num_requests_running", "Answers in generation.", registry=registry)
        self.waiting = Gauge("tunesmith_num_requests_waiting", "Requests that wait for a place.", registry=registry)
        self.prompt_tokens = Counter("tunesmith_prompt_tokens", "Prompt tokens read.", model, registry=registry)
        self.generation_tokens = Counter(
            "tunesmith_generation_tokens", "Tokens generated, failed attempts included.", model, registry=registry
        )
        self.success = Counter(
            "tunesmith_request_success", "Answers, by how they ended.", [*model, "finished_reason"], registry=registry
        )
        self.refused = Counter(
            "tunesmith_request_errors", "Requests refused or failed.", ["status", "code"], registry=registry
        )
        self.first_token_seconds = Histogram(
            "tunesmith_time_to_first_token_seconds",
            "Arrival to first token.",
            model,
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
        self.latency_seconds = Histogram(
            "tunesmith_e2e_request_latency_seconds",
            "Arrival to last token.",
            model,
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.request_prompt_tokens = Histogram(
            "tunesmith_request_prompt_tokens", "Prompt tokens.", model, buckets=TOKEN_BUCKETS, registry=registry
        )
        self.request_generation_tokens = Histogram(
            "tunesmith_request_generation_tokens", "Answer tokens.", model, buckets=TOKEN_BUCKETS, registry=registry
        )
        self.invalid_output = Counter(
            "tunesmith_invalid_output", "Attempts that failed an output check.", [*model, "check"], registry=registry
        )
        self.guard_flags = Counter(
            "tunesmith_guard_flags", "Requests and answers flagged by a guardrail.", [*model, "flag"], registry=registry
        )
        self.contract_deviation = Counter(
            "tunesmith_contract_deviation",
            "Requests that changed a parameter of the contract within its limits.",
            [*model, "param"],
            registry=registry,
        )
        self.feedback = Counter("tunesmith_feedback", "Feedback, by sign of the rating.", ["sign"], registry=registry)
        self.lost = Counter(
            "tunesmith_traces_lost", "Traces and feedback that could not be written.", registry=registry
        )
        self.contract_info = Gauge(
            "tunesmith_contract_info", "Always 1.", ["model_name", "contract", "adapter"], registry=registry
        )

    def watch(self, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Read the two gauges from these functions whenever somebody asks."""
        self.running.set_function(running)
        self.waiting.set_function(waiting)

    def page(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
