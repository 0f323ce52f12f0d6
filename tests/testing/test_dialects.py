"""The replies of real providers by name, and what a pool makes of each: over a real socket, one request."""

from __future__ import annotations

import pytest

from chatpool import ChatPool, errors
from chatpool.testing import DIALECTS, dialect

LIMIT, QUOTA, BAD, INVALID = (
    errors.RateLimitError, errors.QuotaExceededError, errors.BadRequestError, errors.InvalidResponseError,
)  # fmt: skip
SERVER, KEY, MISSING, STATUS = (
    errors.InternalServerError, errors.AuthenticationError, errors.NotFoundError, errors.APIStatusError,
)  # fmt: skip

# name: (class, code, seconds to wait) of the error, or the text of the answer
MEANINGS = {
    "openai_rate_limit": (LIMIT, "rate_limit_exceeded", 20),
    "openai_token_limit": (LIMIT, "rate_limit_exceeded", 0.976),
    "openai_too_large": (LIMIT, "request_too_large", None),
    "openai_empty_account": (QUOTA, "insufficient_quota", None),
    "openai_wrong_key": (KEY, "invalid_api_key", None),
    "openai_unknown_model": (MISSING, "model_not_found", None),
    "openai_too_long": (BAD, "context_length_exceeded", None),
    "openai_overloaded": (SERVER, "service_unavailable_error", None),
    "azure_rate_limit": (LIMIT, None, 2.75),
    "azure_content_filter": (BAD, "content_filter", None),
    "azure_gateway_limit": (LIMIT, None, 20),
    "azure_no_stream_options": (BAD, "invalid_request_error", None),
    "anthropic_rate_limit": (LIMIT, "rate_limit_error", 12),
    "anthropic_overloaded": (SERVER, "overloaded_error", None),
    "anthropic_spend_limit": (QUOTA, "enforced_spend_limit_reached", None),
    "gemini_per_minute": (LIMIT, "RESOURCE_EXHAUSTED", 13),
    "gemini_per_day": (QUOTA, "GenerateRequestsPerDayPerProjectPerModel-FreeTier", None),
    "gemini_wrong_key": (KEY, "API_KEY_INVALID", None),
    "gemini_overloaded": (SERVER, "UNAVAILABLE", None),
    "gemini_cancelled": (STATUS, "CANCELLED", None),
    "gemini_cut": "half a text",
    "mistral_rate_limit": (LIMIT, "rate_limited", None),
    "mistral_cut": "half a text",
    "groq_rate_limit": (LIMIT, "rate_limit_exceeded", 4.77),
    "groq_too_large": (STATUS, "rate_limit_exceeded", None),
    "groq_bad_json": (BAD, "json_validate_failed", None),
    "groq_no_capacity": (STATUS, "capacity_exceeded", None),
    "deepseek_broken_off": (INVALID, "broken_off", None),
    "deepseek_no_balance": (QUOTA, "invalid_request_error", None),
    "deepseek_reasoning": "42",
    "xai_wrong_key": (BAD, "Client specified an invalid argument", None),
    "xai_rate_limit": (LIMIT, "Some resource has been exhausted", None),
    "openrouter_error_in_200": (SERVER, None, None),
    "openrouter_per_day": (QUOTA, None, None),
    "openrouter_in_flight": (LIMIT, "openrouter_in_flight_budget", 2),
    "openrouter_moderation": (errors.PermissionDeniedError, None, None),
    "together_rate_limit": (LIMIT, "credit_limit", None),
    "together_no_credit": (QUOTA, "credit_limit", None),
    "vllm_unknown_model": (MISSING, "NotFoundError", None),
    "vllm_broken_off": (INVALID, "broken_off", None),
    "llamacpp_loading": (SERVER, "unavailable_error", None),
    "llamacpp_too_long": (BAD, "exceed_context_size_error", None),
    "llamacpp_wrong_key": (KEY, "authentication_error", None),
    "ollama_unknown_model": (MISSING, "api_error", None),
    "ollama_queue_full": (SERVER, "api_error", None),
    "lmstudio_wrong_path": (MISSING, None, None),
    "tgi_overloaded": (LIMIT, "overloaded", None),
    "tgi_generation_failed": (STATUS, "generation", None),
    "sglang_broken_off": (INVALID, "broken_off", None),
    "sglang_infinite_logprob": "hi",
    "litellm_cooldown": (LIMIT, None, 5),
    "litellm_budget": (QUOTA, "budget_exceeded", None),
    "login_page": (INVALID, "no_json", None),
    "wrong_path": (MISSING, None, None),
}


def test_every_dialect_is_known_here():
    assert list(MEANINGS) == list(DIALECTS)


@pytest.mark.parametrize("name", MEANINGS)
def test_what_a_pool_makes_of_it(server, name):
    """One try each: class, code and delay of the error, or the answer."""
    server.script("a", dialect(name))
    with ChatPool(1, base_url=server.url, max_tries=1, max_wait=0.01) as pool:
        result = pool.submit("a").result(20)
    if isinstance(MEANINGS[name], str):
        assert result.text == MEANINGS[name]
    else:
        assert (type(result.error), result.error.code, result.error.retry_after) == MEANINGS[name]
    assert server.count("a") == 1


def test_cut_answers_count_as_truncated(server):
    for name in ("gemini_cut", "mistral_cut"):
        server.script(name, dialect(name))
    with ChatPool(1, base_url=server.url) as pool:
        answers = pool.map(["gemini_cut", "mistral_cut"])
    assert "truncated answers: 2" in answers.summary()


def test_reasoning_is_on_the_result(server):
    server.script("a", dialect("deepseek_reasoning"))
    with ChatPool(1, base_url=server.url) as pool:
        (result,) = pool.map(["a"]).results
    assert (result.text, result.reasoning) == ("42", "6 times 7")
    assert result.message["reasoning_content"] == "6 times 7"


def test_a_dialect_can_be_changed():
    assert dialect("gemini_per_minute", delay=0.5).delay == 0.5
    assert DIALECTS["gemini_per_minute"].delay == 0


def test_an_unknown_dialect_names_those_of_the_provider():
    with pytest.raises(ValueError, match="no dialect 'gemini_per_hour'; there are gemini_per_minute, gemini_per_day"):
        dialect("gemini_per_hour")
