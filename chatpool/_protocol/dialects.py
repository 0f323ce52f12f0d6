"""The words of servers and their meaning: tables by which replies are judged. A provider's dialect is a line in them.

Each row ends with the servers that use the words. ``docs/faults.md`` shows these tables, and a test compares the two.
The words are in lower case with underscores, and compared in that form: see ``word``. The names in ``CODES`` are
patterns; each matches a whole name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OTHER = re.compile(r"[^a-z0-9]+")


def word(name: Any) -> str:
    """Return a name in the form of the tables: ``AccountOverdueError`` and ``account-overdue error`` are the same."""
    return _OTHER.sub("_", _HUMP.sub("_", str(name)).lower()).strip("_")


# Finish reasons. Text with any other reason is an answer.

STOP, LENGTH, FILTER, BROKEN_OFF = "stop", "length", "content_filter", "error"

FINISH_REASONS = [
    (STOP, "stop", "OpenAI"),
    (STOP, "eos eos_token stop_sequence", "TGI"),
    (STOP, "end_turn", "Anthropic"),
    (STOP, "complete completed done", "Cohere, the Responses API, Ollama"),
    (LENGTH, "length", "OpenAI"),
    (LENGTH, "max_output_tokens max_completion_tokens", "the Responses API"),
    (LENGTH, "max_tokens", "Gemini, Anthropic, Cohere"),
    (LENGTH, "model_length", "Mistral"),
    (LENGTH, "model_context_window_exceeded context_length_exceeded", "Anthropic, Z.AI"),
    (LENGTH, "error_limit token_limit max_length max_new_tokens", "Cohere, watsonx, TGI's kin"),
    (FILTER, "content_filter content_filtered", "OpenAI, Bedrock"),
    (FILTER, "safety recitation blocklist prohibited_content spii", "Gemini"),
    (FILTER, "image_safety image_recitation image_prohibited_content", "Gemini"),
    (FILTER, "refusal", "Anthropic"),
    (FILTER, "error_toxic", "Cohere"),
    (FILTER, "guardrail_intervened", "Bedrock"),
    (FILTER, "sensitive", "Z.AI"),
    (BROKEN_OFF, "error", "OpenRouter, Mistral, vLLM"),
    (BROKEN_OFF, "insufficient_system_resource", "DeepSeek"),
    (BROKEN_OFF, "abort aborted", "vLLM, SGLang"),
    (BROKEN_OFF, "network_error", "Z.AI"),
    (BROKEN_OFF, "cancelled canceled cancel user_cancel", "the Responses API, Cohere"),
    (BROKEN_OFF, "failed server_error internal_error timeout overloaded interrupted", "gateways"),
    (BROKEN_OFF, "malformed_function_call malformed_response unexpected_tool_call", "Gemini"),
    (BROKEN_OFF, "load unload", "Ollama: it only loaded the model"),
]
_MEANING_OF_REASON = {reason: meaning for meaning, reasons, _ in FINISH_REASONS for reason in reasons.split()}


def finish_meaning(reason: Any) -> str | None:
    """Return STOP, LENGTH, FILTER or BROKEN_OFF for a finish reason; None for any other.

    Text after a colon is a detail, text before a dot the name of an enumeration. SGLang also sends an object with a
    ``type``.
    """
    if isinstance(reason, dict):
        reason = reason.get("type")
    if not isinstance(reason, str):
        return None
    if reason in _MEANING_OF_REASON:
        return _MEANING_OF_REASON[reason]
    name = word(reason.split(":")[0].rpartition(".")[2])
    return _MEANING_OF_REASON.get(name.replace("finish_reason_", "", 1))


# Statuses. Every 5xx is retried, and no other 4xx is.

TRANSIENT_STATUSES = [
    (408, "Request Timeout", "RFC 9110; retried by OpenAI's SDK, too"),
    (409, "Conflict", "retried by OpenAI's SDK, too"),
    (424, "generation failed", "TGI, Bedrock"),
    (425, "Too Early", "RFC 8470"),
    (429, "rate limit", "RFC 6585; also for an empty account, see the codes"),
    (498, "no capacity", "Groq's flex tier"),
    (499, "cancelled under load", "Gemini, nginx"),
]
OVERLOAD_STATUSES = [
    (429, "rate limit", "all"),
    (498, "no capacity", "Groq's flex tier"),
    (503, "overloaded", "Gemini, DeepSeek, Mistral, vLLM, Ollama"),
    (529, "overloaded", "Anthropic, MiniMax"),
]

# Codes and types. If an error has several of these names, the first meaning counts.

SPENT, IN_FLIGHT, MODEL_FAILED, TOO_LARGE, FILTERED, BAD_KEY = (
    "account spent", "too much in flight", "model failed", "prompt too large", "content filter", "wrong key",
)  # fmt: skip
RATE, OVERLOADED, NO_PERMISSION, NOT_FOUND, TIMEOUT, SERVER, BAD_REQUEST = (
    "rate limit", "overloaded", "no permission", "not found", "timeout", "server error", "bad request",
)  # fmt: skip

CODES = [
    (SPENT, "insufficient_quota billing_.* credit_balance_.*", "OpenAI"),
    (SPENT, "(organization|project|enforced)_.*_limit_(exceeded|reached)", "OpenAI, Anthropic"),
    (SPENT, "usage_limit_(reached|exceeded)", "Codex"),
    (SPENT, "exceeded_current_quota(_error)?", "Moonshot"),
    (SPENT, ".*per_day.*", "Gemini: the quotaId for a day"),
    (SPENT, "arrearage account_arrearage .*free_tier_only", "Alibaba Model Studio"),
    (SPENT, "account_overdue(_error)?", "Volcengine Ark"),
    (SPENT, "(insufficient|not_enough|no|low|out_of)_([a-z]+_)?(quota|balance|credits?|funds?)", "One API, Novita"),
    (SPENT, "payment_required(_error)? .*spend(ing)?_limit.*", "gateways"),
    (SPENT, "(budget_exceeded|exceeded_budget)(_error)?", "LiteLLM"),
    (SPENT, "1113 1304 1308 1309 1310", "Z.AI: no balance; the limit of a day, a week; expired plan"),
    (SPENT, "base_resp_(1008|2056)", "MiniMax: no balance; the limit of five hours"),
    (SPENT, "30001 30011", "SiliconFlow: no balance"),
    (SPENT, "openrouter_(key_limit|guardrail_budget|workspace_budget)", "OpenRouter"),
    (IN_FLIGHT, "in_flight_budget_exhausted openrouter_in_flight_budget", "OpenRouter, with 402"),
    (MODEL_FAILED, "json_validate_failed tool_use_failed output_parse_failed", "Groq, with 400"),
    (MODEL_FAILED, "model_error(_exception)? malformed_function_call", "Bedrock, Gemini"),
    (MODEL_FAILED, "generation(_error)?", "TGI"),
    (TOO_LARGE, "context_length_exceeded string_above_max_length", "OpenAI"),
    (TOO_LARGE, "request_too_large request_entity_too_large payload_too_large", "Anthropic, gateways"),
    (TOO_LARGE, "exceed_context_size_error", "llama.cpp, with 400 or 500"),
    (TOO_LARGE, "weight_exceeds_budget string_too_long token_limit_exceeded max_tokens_exceeded", "OpenRouter"),
    (TOO_LARGE, "tokens_limit_reached (prompt|input)_too_long 1261", "GitHub Models, Z.AI"),
    (FILTERED, "content_filter(ed)? content_policy_violation responsible_ai_policy_violation", "OpenAI, Azure"),
    (FILTERED, "data_inspection_failed", "Alibaba Model Studio"),
    (FILTERED, ".*sensitive_content_detected.* .*risk_detection.*", "Volcengine Ark"),
    (FILTERED, "1301 base_resp_1026 base_resp_1027", "Z.AI, MiniMax"),
    (BAD_KEY, "(invalid|incorrect)_(api_)?(key|token)(_provided)?(_error)?", "OpenAI, Moonshot"),
    (BAD_KEY, "api_key_(invalid|expired)", "Gemini, with 400"),
    (BAD_KEY, "(invalid_)?authentication(_failed)?(_error)?", "Anthropic, Moonshot"),
    (BAD_KEY, "auth_error token_not_found_in_db", "LiteLLM"),
    (BAD_KEY, "unauthenticated unauthorized(_error)?", "Google, gateways"),
    (BAD_KEY, "base_resp_(1004|2049)", "MiniMax"),
    (RATE, "rate_limit.* .*rate_limit(ed|_exceeded|_reached)?(_error)? too_many_.*", "OpenAI, Mistral, Moonshot"),
    (RATE, "throttl.* limit_requests limit_burst_rate", "AWS, Alibaba Model Studio"),
    (RATE, "resource_exhausted .*quota_exceeded(_exception)?", "Google; Cerebras, for its limits of a minute"),
    (RATE, "credit_limit", "Together: the rate limit of a free account"),
    (RATE, "base_resp_(1002|1039|1041|2045)", "MiniMax"),
    (OVERLOADED, "(.*_)?overloaded(_error)?", "Anthropic, OpenAI, Moonshot, TGI"),
    (OVERLOADED, "(.*_)?unavailable(_error|_exception)?", "Google, llama.cpp, Bedrock"),
    (OVERLOADED, "(no_)?capacity(_exceeded)? slow_down queue_exceeded", "Groq, Azure, OpenAI, Cerebras"),
    (OVERLOADED, "model_not_ready(_exception)?", "Bedrock"),
    (NO_PERMISSION, "permission_(denied|error)(_error)? forbidden access_denied(_exception)?", "Anthropic, Google"),
    (NOT_FOUND, "(.*_)?not_found(_error)? (unknown|no_such|invalid)_(model|url|path)", "OpenAI, Google, Mistral, vLLM"),
    (NOT_FOUND, "model_not_open 1211", "Volcengine Ark, Z.AI"),
    (TIMEOUT, "(.*_)?timeout(_error)? deadline_exceeded base_resp_1001", "Google, MiniMax, gateways"),
    (SERVER, "(internal_)?server_error internal(_error)? api_error", "OpenAI, Google, Anthropic, Ollama"),
    (SERVER, "cancelled unknown(_error)? internal_failure upstream_error bad_gateway", "Google, AWS, gateways"),
    (SERVER, "base_resp_(1000|1024|1033)", "MiniMax"),
    (BAD_REQUEST, "(invalid|bad|unsupported|missing)_.* validation_(error|exception)", "all"),
    (BAD_REQUEST, "failed_precondition base_resp_(1042|2013)", "Google, MiniMax"),
]

# The status of an error in a 2xx, by the meaning of its code.
STATUS_OF = {
    SPENT: 402, IN_FLIGHT: 402, MODEL_FAILED: 400, TOO_LARGE: 400, FILTERED: 400, BAD_KEY: 401, RATE: 429,
    OVERLOADED: 503, NO_PERMISSION: 403, NOT_FOUND: 404, TIMEOUT: 504, SERVER: 500, BAD_REQUEST: 400,
}  # fmt: skip

# Codes that have another meaning at one host.
AT_HOST = [
    ("aliyuncs.com", "insufficient_quota", RATE, "Alibaba Model Studio: the limit of tokens a minute"),
]

# Words of an error in a 2xx that has no code. Never "quota", "credit" or "billing": rate limits have these words, too.
WORDS = [
    (BAD_KEY, r"\b(invalid|incorrect|wrong|missing|no) api[ _-]?key\b", "gateways"),
    (NOT_FOUND, r"\bunexpected endpoint\b", "LM Studio"),
    (NOT_FOUND, r"\bmodel\b.{1,80}\b(not found|does not exist)\b", "Ollama, vLLM"),
    (TOO_LARGE, r"\b(context|prompt|input)\b.{0,40}\b(too (long|large)|exceed(s|ed)?)\b", "LM Studio"),
    (TOO_LARGE, r"\bmaximum context length\b", "vLLM"),
    (RATE, r"\brate.?limit|\btoo many requests\b", "gateways"),
    (OVERLOADED, r"\boverloaded\b|\bat capacity\b", "Anthropic, gateways"),
    (OVERLOADED, r"\btemporarily unavailable\b|\btry again later\b", "gateways"),
]

# Names of limits in a message, if no field has them.
SPENT_LIMITS = [
    ("free-models-per-day", "OpenRouter"),
]

# Messages of web frameworks for an unknown path, in a 404 or 405 without a code.
PATH_WORDS = ("not_found", "method_not_allowed", "404_page_not_found", "file_not_found", "resource_not_found")


def code_meaning(names: Iterable[str], host: str = "") -> tuple[str, str] | None:
    """Return the meaning of an error with these names, and the name that has it; None if no table has them."""
    words = {word(name): name for name in reversed(list(names))}
    for place, name, meaning, _ in AT_HOST:
        if name in words and (host == place or host.endswith("." + place)):
            return meaning, words[name]
    for meaning, pattern in _code_patterns().items():
        for name in reversed(words):
            if pattern.fullmatch(name):
                return meaning, words[name]
    return None


def words_meaning(message: str) -> str | None:
    """Return the meaning of an error's words."""
    return next((meaning for meaning, pattern in _word_patterns() if pattern.search(message[:1000])), None)


def names_spent_limit(message: str) -> bool:
    """Whether a message names a limit for a day or longer."""
    return any(limit in message for limit, _ in SPENT_LIMITS)


@cache  # compiled at the first error: it would take a tenth of the time to import chatpool
def _code_patterns() -> dict[str, re.Pattern[str]]:
    patterns: dict[str, list[str]] = {}
    for meaning, names, _ in CODES:
        patterns.setdefault(meaning, []).extend(names.split())
    return {meaning: re.compile("|".join(names)) for meaning, names in patterns.items()}


@cache
def _word_patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [(meaning, re.compile(pattern, re.IGNORECASE)) for meaning, pattern, _ in WORDS]
