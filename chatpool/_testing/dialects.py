"""Replies of real providers by name, so that a test can say "Gemini's rate limit for a minute".

Statuses, headers and shapes are from the providers' documentation and public bug reports; ``docs/providers.md`` has the
sources. Ids and figures are made up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .replies import Reply


def _error(status: int, message: str, kind: str | None = None, code: Any = None, **headers: str) -> Reply:
    """Return an error in OpenAI's form, which most providers use."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return _reply(status, body, **headers)


def _reply(status: int, body: Any, **headers: str) -> Reply:
    return Reply(status=status, body=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


def _anthropic(status: int, kind: str, message: str, details: Any = None, **headers: str) -> Reply:
    error = {"type": kind, "message": message, **({"details": details} if details else {})}
    return _reply(status, {"type": "error", "error": error, "request_id": "req_011CSH"}, **headers)


def _google(status: int, word: str, message: str, *details: Mapping[str, Any]) -> Reply:
    error = {"code": status, "message": message, "status": word, "details": list(details)}
    return _reply(status, [{"error": error}])


def _gemini_quota(name: str, delay: str) -> Reply:
    metric = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
    return _google(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details.",
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaMetric": metric, "quotaId": f"GenerateRequests{name}PerProjectPerModel-FreeTier"}],
        },
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
    )


_OPENAI_LIMIT = "Rate limit reached for gpt-4o-mini in organization org-x on {}. Please try again in {}."
_GROQ_LIMIT = "Rate limit reached for model `llama-3.3-70b-versatile` on {}. Please try again in {}."
_THOUGHT = {"role": "assistant", "content": "42", "reasoning_content": "6 times 7"}

DIALECTS: dict[str, Reply] = {
    # OpenAI
    "openai_rate_limit": _error(
        429, _OPENAI_LIMIT.format("requests per min (RPM): Limit 3, Used 3, Requested 1", "20s"), "requests",
        "rate_limit_exceeded", x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="20s"),
    "openai_token_limit": _error(
        429, _OPENAI_LIMIT.format("tokens per min (TPM): Limit 30000, Used 29500, Requested 1000", "976ms"), "tokens",
        "rate_limit_exceeded"),
    "openai_too_large": _error(
        429, "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested "
        "45120. The input or output tokens must be reduced.", "tokens", "rate_limit_exceeded"),
    "openai_empty_account": _error(
        429, "You exceeded your current quota, please check your plan and billing details.", "insufficient_quota",
        "insufficient_quota"),
    "openai_wrong_key": _error(401, "Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    "openai_unknown_model": _error(
        404, "The model `gpt-0` does not exist or you do not have access to it.", "invalid_request_error",
        "model_not_found"),
    "openai_too_long": _error(
        400, "This model's maximum context length is 8192 tokens.", "invalid_request_error", "context_length_exceeded"),
    "openai_overloaded": _error(503, "The engine is currently overloaded.", "service_unavailable_error", None),
    # Azure OpenAI
    "azure_rate_limit": _error(
        429, "Your requests have exceeded the token rate limit. Please retry after 3 seconds.", None, "429",
        retry_after="3", retry_after_ms="2750"),
    "azure_content_filter": _reply(400, {"error": {
        "message": "The response was filtered.", "type": None, "param": "prompt", "code": "content_filter",
        "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    "azure_gateway_limit": _reply(
        429, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 20 seconds."}),
    "azure_no_stream_options": _error(
        400, "Unrecognized request argument supplied: stream_options", "invalid_request_error"),
    # Anthropic's compatible endpoint
    "anthropic_rate_limit": _anthropic(
        429, "rate_limit_error", "This request would exceed your organization's rate limit.", retry_after="12"),
    "anthropic_overloaded": _anthropic(529, "overloaded_error", "Overloaded", x_should_retry="true"),
    "anthropic_spend_limit": _anthropic(
        429, "rate_limit_error", "You have reached your spend limit.",
        {"error_code": "enforced_spend_limit_reached"}),
    # Gemini
    "gemini_per_minute": _gemini_quota("PerMinute", "13s"),
    "gemini_per_day": _gemini_quota("PerDay", "45s"),
    "gemini_wrong_key": _google(
        400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.",
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}),
    "gemini_overloaded": _google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "gemini_cancelled": _google(499, "CANCELLED", "The operation was cancelled."),
    "gemini_cut": Reply("half a text", finish_reason="MAX_TOKENS"),
    # Mistral
    "mistral_rate_limit": _reply(429, {
        "object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "param": None, "code": "1300"}),
    "mistral_cut": Reply("half a text", finish_reason="model_length"),
    # Groq
    "groq_rate_limit": _error(
        429, _GROQ_LIMIT.format("tokens per minute (TPM): Limit 6000, Used 5034, Requested 1443", "4.77s"), "tokens",
        "rate_limit_exceeded"),
    "groq_too_large": _error(
        413, "Request too large for model `llama-3.3-70b-versatile` on tokens per minute (TPM): Limit 6000, "
        "Requested 14368, please reduce your message size and try again.", "tokens", "rate_limit_exceeded"),
    "groq_bad_json": _reply(400, {"error": {
        "message": "Failed to generate JSON. Please adjust your prompt.", "type": "invalid_request_error",
        "code": "json_validate_failed", "failed_generation": "{"}}),
    "groq_no_capacity": _error(498, "Flex tier capacity exceeded.", None, "capacity_exceeded"),
    # DeepSeek
    "deepseek_broken_off": Reply("half a text", finish_reason="insufficient_system_resource"),
    "deepseek_no_balance": _error(402, "Insufficient Balance", "unknown_error", "invalid_request_error"),
    "deepseek_reasoning": _reply(200, {"choices": [{"index": 0, "message": _THOUGHT, "finish_reason": "stop"}]}),
    # xAI
    "xai_wrong_key": _reply(400, {
        "code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***ey."}),
    "xai_rate_limit": _reply(429, {
        "code": "Some resource has been exhausted", "error": "Too many requests for team x and model grok."}),
    # OpenRouter
    "openrouter_error_in_200": _reply(200, {"error": {
        "message": "Provider returned error", "code": 502, "metadata": {"provider_name": "x", "raw": "bad gateway"}}}),
    "openrouter_per_day": _reply(429, {"error": {
        "message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free requests per day",
        "code": 429, "metadata": {"headers": {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0"}}}}),
    "openrouter_in_flight": _reply(402, {"error": {
        "message": "Too much in flight.", "code": 402, "metadata": {"limit_source": "openrouter_in_flight_budget"}}},
        retry_after="2"),
    "openrouter_moderation": _reply(403, {"error": {
        "message": "Your input was flagged", "code": 403, "metadata": {"reasons": ["violence"]}}}),
    # Together
    "together_rate_limit": _error(
        429, "You have been rate limited. Your rate limit is 60 queries per minute. Please navigate to "
        "https://api.together.xyz/settings/billing to upgrade to a paid plan.", "credit_limit"),
    "together_no_credit": _error(402, "Credit limit exceeded.", "credit_limit"),
    # vLLM
    "vllm_unknown_model": _reply(404, {
        "object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "param": None,
        "code": 404}),
    "vllm_broken_off": Reply("half a text", finish_reason="abort"),
    # llama.cpp
    "llamacpp_loading": _reply(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
    "llamacpp_too_long": _reply(400, {"error": {
        "code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error",
        "n_prompt_tokens": 4390, "n_ctx": 4096}}),
    "llamacpp_wrong_key": _reply(401, {"error": {
        "code": 401, "message": "Invalid API Key", "type": "authentication_error"}}),
    # Ollama
    "ollama_unknown_model": _error(404, 'model "llama3.2" not found, try pulling it first', "api_error", None),
    "ollama_queue_full": _error(503, "server busy, please try again.  maximum pending requests exceeded", "api_error"),
    # LM Studio
    "lmstudio_wrong_path": _reply(200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}),
    # TGI
    "tgi_overloaded": _reply(429, {"error": "Model is overloaded", "error_type": "overloaded"}),
    "tgi_generation_failed": _reply(424, {"error": "Request failed during generation", "error_type": "generation"}),
    # SGLang
    "sglang_broken_off": Reply("half a text", finish_reason="abort"),
    "sglang_infinite_logprob": Reply(body=(
        '{"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop", '
        '"logprobs": {"content": [{"token": "hi", "logprob": -Infinity}]}}]}')),
    # LiteLLM
    "litellm_cooldown": _error(
        429, "No deployments available for selected model, Try again in 5 seconds.", "None", "429"),
    "litellm_budget": _error(400, "Budget has been exceeded! Current cost: 2, Max budget: 1", "budget_exceeded", "400"),
    # Gateways, proxies and web servers
    "login_page": Reply(body="<!DOCTYPE html><html><title>Sign in</title><body>Please log in</body></html>"),
    "wrong_path": _reply(404, {"detail": "Not Found"}),
}  # fmt: skip


def dialect(name: str, **changes: Any) -> Reply:
    """Return a provider's reply by its name, such as ``"gemini_per_minute"``. ``changes``: fields of ``Reply``.

    ``DIALECTS`` has all names. Raises ValueError for any other.
    """
    if name not in DIALECTS:
        provider = name.partition("_")[0]
        known = [other for other in DIALECTS if other.startswith(provider)] or list(DIALECTS)
        raise ValueError(f"there is no dialect {name!r}; there are {', '.join(known)}")
    return replace(DIALECTS[name], **changes)
