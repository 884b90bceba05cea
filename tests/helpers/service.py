"""Tests of the service as clients see it, for each scenario with all three tiers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import openai
import pytest

from helpers.stack import CLIENT, MODEL, anthropic_client, engine_url, http_client, openai_client, ssh

# Several seconds of generation, within the model's context of 2,048 tokens.
LONG = {"max_tokens": 1900, "extra_body": {"ignore_eos": True}}
MESSAGES = [{"role": "user", "content": "hello"}]


class ServiceTests:
    """Subclass with `engine_host`, the host whose engine answers."""

    engine_host: str

    @pytest.fixture(autouse=True)
    def _look_up_the_engine(self) -> None:
        engine_url(self.engine_host)  # cached here, so that the tests do not do it during a generation

    @pytest.fixture
    def client(self) -> Iterator[openai.OpenAI]:
        with openai_client() as client:
            yield client

    def running(self) -> float:
        """How many requests the engine runs, by its own metric."""
        text = ssh(self.engine_host, f"curl -s http://{engine_url(self.engine_host)}/metrics")
        return sum(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running")
        )

    def test_a_completion(self, client: openai.OpenAI) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8)
        assert answer.usage.completion_tokens <= 8
        assert answer.model == MODEL

    def test_anthropics_messages(self) -> None:
        with anthropic_client() as client:
            answer = client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=8)
            assert answer.usage.output_tokens <= 8
            with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=8) as stream:
                assert stream.get_final_message().stop_reason in ("max_tokens", "end_turn")

    def test_responses(self, client: openai.OpenAI) -> None:
        answer = client.responses.create(model=MODEL, input="hello", max_output_tokens=8)
        assert answer.usage.output_tokens <= 8

    def test_models_are_listed(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == [MODEL]

    def test_a_stream_arrives_while_it_is_made(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **LONG)
        chunks = iter(stream)
        next(chunks)
        # The engine still generates after the first chunk arrived, so no tier collects the answer first.
        assert self.running() == 1
        rest = list(chunks)
        assert rest[-1].choices[0].finish_reason == "length"

    def test_a_client_that_hangs_up_stops_the_engine(self, client: openai.OpenAI) -> None:
        stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **LONG)
        chunks = iter(stream)  # kept in a variable: a stream is closed when its iterator is garbage
        next(chunks)
        assert self.running() == 1
        # Watched from the engine's host, so that setting up a connection takes nothing of the second that is measured.
        watch = (
            f"read -r go; for i in $(seq 100); do "
            f"n=$(curl -s http://{engine_url(self.engine_host)}/metrics | sed -n 's/^vllm:num_requests_running.* //p'); "
            '[ "$n" = 0.0 ] && { echo "$i"; exit; }; sleep 0.05; done; echo never'
        )
        polls = hang_up_and_watch(stream, self.engine_host, watch)
        assert polls != "never"
        # A poll takes at least 50 ms, so twenty polls are the promised second.
        assert int(polls) <= 20

    def test_a_wrong_key_is_refused(self) -> None:
        wrong = openai_client(api_key="sk-wrong-" + "0" * 40)
        with wrong, pytest.raises(openai.AuthenticationError) as error:
            wrong.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert error.value.body["code"]

    def test_an_unknown_model_is_named(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="no-such-model"):
            client.chat.completions.create(model="no-such-model", messages=MESSAGES)

    def test_a_prompt_of_two_megabytes_reaches_the_engine_and_its_answer_the_client(
        self, client: openai.OpenAI
    ) -> None:
        with pytest.raises(openai.BadRequestError, match=r"(?i)context|token"):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "word " * 400_000}], max_tokens=4
            )

    @pytest.mark.parametrize(
        "path",
        [
            "/metrics",
            "/health/ready",
            "/docs",
            "/v1/load_lora_adapter",
            "/invocations",
            "/v1/../metrics",
            "/ping",
            "/version",
        ],
    )
    def test_what_is_not_the_api_is_refused(self, path: str) -> None:
        with http_client() as client:
            for method in ("GET", "POST"):
                answer = client.request(method, path)
                assert answer.status_code in (400, 404, 405), (
                    f"{method} {path}: {answer.status_code} {answer.text[:300]}"
                )
                assert answer.json()["error"]["message"]


def hang_up_and_watch(stream: object, host: str, watch: str) -> str:
    """Close `stream` once the watcher on `host` is ready, and return what the watcher printed."""
    with subprocess.Popen(
        ["ssh", "-F", str(CLIENT / "ssh_config"), host, watch], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watcher:
        stream.close()  # type: ignore[attr-defined]
        out, _ = watcher.communicate("go\n", timeout=60)
    return out.strip()
