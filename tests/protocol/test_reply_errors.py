"""Replies that report an error, in every shape and dialect: class, status, code, message, and what follows."""

from __future__ import annotations

import json

import pytest

from chatpool import errors
from chatpool._protocol.dialects import CODES, STATUS_OF, WORDS, code_meaning
from chatpool._protocol.judgement import is_fatal_for_all, is_refusal, is_transient

from .made import completion, judge, reply

# Errors inside a 200: code, else type, else words count as the status. name: (body, class, status, code, message)
IN_200 = {
    "LM Studio, a wrong path": (
        {"error": "Unexpected endpoint or method. (POST /chat/completions)"},
        errors.NotFoundError, 404, None, "Unexpected endpoint"),
    "a status as the code, at the top": (
        {"object": "error", "message": "no such model", "code": 404}, errors.NotFoundError, 404, None, "no such model"),
    "a type alone": (
        {"error": {"type": "overloaded_error", "message": "Overloaded", "code": None}},
        errors.InternalServerError, 503, "overloaded_error", "Overloaded"),
    "Anthropic": (
        {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}},
        errors.RateLimitError, 429, "rate_limit_error", "slow"),
    "MiniMax, a wrong key": (
        {"base_resp": {"status_code": 1004, "status_msg": "login fail"}},
        errors.AuthenticationError, 401, "1004", "login fail"),
    "MiniMax, a rate limit beside null choices": (
        {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
        errors.RateLimitError, 429, "1002", "rate limit"),
    "MiniMax, no balance": (
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        errors.QuotaExceededError, 402, "1008", "insufficient balance"),
    "MiniMax, sensitive": (
        {"base_resp": {"status_code": 1027, "status_msg": "output sensitive"}},
        errors.InvalidResponseError, 200, "content_filter", "output sensitive"),
    "MiniMax, a number of no table": (
        {"base_resp": {"status_code": 7777, "status_msg": "strange"}},
        errors.InvalidResponseError, 200, "7777", "strange"),
    "OpenRouter, the provider's words": (
        {"error": {"code": 429, "message": "Provider returned error", "metadata": {"raw": "busy upstream"}}},
        errors.RateLimitError, 429, None, "Provider returned error: busy upstream"),
    "Z.AI, without an error object": (
        {"code": 500, "msg": "404 NOT_FOUND", "success": False},
        errors.InternalServerError, 500, None, "404 NOT_FOUND"),
    "Google, in a list": (
        [{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}],
        errors.InternalServerError, 503, "UNAVAILABLE", "overloaded"),
    "a list of errors": (
        {"errors": [{"message": "too many requests"}], "result": None, "success": False},
        errors.RateLimitError, 429, None, "too many requests"),
    "a prompt too long, in words": (
        {"error": "The context length of the prompt exceeds 4096"}, errors.BadRequestError, 400, None, "4096"),
    "a wrong key, in words": ({"error": {"message": "Invalid API key"}}, errors.AuthenticationError, 401, None, "Invalid"),
    "no table has it": ({"error": "the hamster stopped"}, errors.InvalidResponseError, 200, "error_in_200", "hamster"),
    "a code that no table has": (
        {"error": {"code": "hamster", "message": "it stopped"}}, errors.InvalidResponseError, 200, "hamster", "stopped"),
    "the error is true": ({"error": True, "message": "oops"}, errors.InvalidResponseError, 200, "error_in_200", "oops"),
    "an error object beside a whole answer": (
        {**completion("hi"), "error": {"code": 502, "message": "cut"}}, errors.InternalServerError, 502, None, "cut"),
    "no error and no answer, but words": (
        {"choices": [], "message": "come back later"},
        errors.InvalidResponseError, 200, "no_choices", "come back later"),
}  # fmt: skip


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize("name", IN_200)
def test_errors_in_a_2xx(name, status):
    """It is the error that its code, its type or its words name, and the server's words are the message."""
    body, kind, code_status, code, message = IN_200[name]
    error = judge(reply(body, status))
    assert type(error) is kind
    assert (error.status_code, error.code) == (status if code_status == 200 else code_status, code)
    assert message in str(error)


@pytest.mark.parametrize(
    "error",
    [
        None, "", {}, [], False, 0, {"message": "", "code": None}, {"message": None, "type": "", "param": None},
        {"code": 0, "message": "success"}, {"code": "200", "message": ""}, {"code": "ok"}, [{}], "none",
    ],
    ids=str,
)  # fmt: skip
def test_a_good_answer_beside_an_empty_error(error):
    assert judge(reply({**completion("hi"), "error": error})).text == "hi"


@pytest.mark.parametrize(
    "beside",
    [
        {"base_resp": {"status_code": 0, "status_msg": "success"}}, {"code": 200, "message": "success"},
        {"success": True}, {"msg": "ok", "code": 0}, {"detail": None}, {"object": "error"},
    ],
    ids=str,
)  # fmt: skip
def test_a_good_answer_beside_what_gateways_add(beside):
    assert judge(reply({**completion("hi"), **beside})).text == "hi"


# Bodies of other shapes. name: (status, body, code, message)
SHAPES = {
    "OpenAI": (400, {"error": {"message": "m", "type": "t", "code": "c"}}, "c", "400: m"),
    "OpenAI, with a parameter": (
        400, {"error": {"message": "bad value", "type": "t", "param": "temperature", "code": None}},
        "t", "400: bad value (parameter temperature)"),
    "Gemini, a list of one": (
        400, [{"error": {"code": 400, "message": "m", "status": "INVALID_ARGUMENT"}}], "INVALID_ARGUMENT", "400: m"),
    "Google, the reason in the details": (
        403, {"error": {"code": 403, "message": "m", "status": "PERMISSION_DENIED", "details": [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED"}]}},
        "PERMISSION_DENIED", "403: m"),
    "xAI": (400, {"code": "Client specified an invalid argument", "error": "m"},
            "Client specified an invalid argument", "400: m"),
    "TGI": (422, {"error": "m", "error_type": "validation"}, "validation", "422: m"),
    "vLLM before 0.10": (400, {"object": "error", "message": "m", "type": "BadRequestError", "code": 400},
                         "BadRequestError", "400: m"),
    "Mistral": (422, {"object": "error", "message": {"detail": [{"loc": ["body", "temperature"], "msg": "m"}]},
                      "type": "invalid_request_error", "code": None}, "invalid_request_error",
                "422: body.temperature: m"),
    "FastAPI": (422, {"detail": [{"loc": ["body", "messages", 0], "msg": "field required", "type": "missing"}]},
                "missing", "422: body.messages.0: field required"),
    "FastAPI, a text": (400, {"detail": "m"}, None, "400: m"),
    "FastAPI, an object": (400, {"detail": {"error": {"message": "m", "code": "c"}}}, "c", "400: m"),
    "Azure's API management": (400, {"statusCode": 400, "message": "m"}, None, "400: m"),
    "Azure, an inner error": (
        400, {"error": {"message": "m", "code": "content_filter", "status": 400,
                        "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, "content_filter", "400: m"),
    "Baidu": (400, {"error_code": 336003, "error_msg": "m"}, "336003", "400: m"),
    "Cloudflare": (400, {"success": False, "errors": [{"code": 7009, "message": "m"}]}, "7009", "400: m"),
    "AWS": (400, {"__type": "ValidationException", "message": "m"}, "ValidationException", "400: m"),
    "SiliconFlow": (400, {"code": 20012, "message": "m", "data": None}, "20012", "400: m"),
    "RFC 9457": (400, {"type": "about:blank", "title": "m", "status": 400}, None, "400: m"),
    "OAuth": (400, {"error": "invalid_grant", "error_description": "m"}, None, "400: m"),
    "a list of texts": (400, ["a", "b"], None, "400: a; b"),
    "a text": (400, "m", None, "400: m"),
    "a text inside": (400, {"error": ["a", "b"]}, None, "400: a; b"),
    "nested twice": (400, {"error": {"error": {"message": "m", "code": "c"}}}, "c", "400: m"),
    "nothing": (400, {}, None, "400: {}"),
    "not JSON": (400, b"bad  request\n", None, "400: bad request"),
    "empty": (400, b"", None, "400: the reply is empty"),
    "a whole code": (400, {"error": {"code": 1210.0, "message": "m"}}, "1210", "400: m"),
    "a code that is none": (400, {"error": {"code": {"a": 1}, "message": "m", "type": True}}, None, "400: m"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_error_bodies_of_every_shape(name):
    status, body, code, message = SHAPES[name]
    error = judge(reply(body, status))
    assert (error.code, str(error)) == (code, message)
    assert error.status_code == status


GOOGLE_QUOTA = "You exceeded your current quota, please check your plan and billing details."


def gemini(*quotas, delay="45s"):
    """Return a refusal of Gemini's; those of a minute and of a day differ in nothing but the quotaId."""
    violations = [{"quotaMetric": "generate_content_free_tier_requests", "quotaId": quota} for quota in quotas]
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay},
    ]
    error = {"code": 429, "message": GOOGLE_QUOTA, "status": "RESOURCE_EXHAUSTED", "details": details}
    return [{"error": error}]


MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"

# What waiting cures, and what it does not. name: (status, body, does it pass by itself)
LIMITS = {
    "OpenAI, a limit of a minute": (429, {"error": {"code": "rate_limit_exceeded", "type": "tokens"}}, True),
    "OpenAI, an empty account": (429, {"error": {"code": "insufficient_quota", "type": "insufficient_quota"}}, False),
    "OpenAI, by type": (429, {"error": {"code": None, "type": "insufficient_quota"}}, False),
    "OpenAI, a spend limit": (429, {"error": {"code": "organization_spend_limit_exceeded"}}, False),
    "OpenAI, billing": (429, {"error": {"code": "billing_hard_limit_reached"}}, False),
    "Anthropic, a limit of a minute": (429, {"error": {"type": "rate_limit_error", "message": GOOGLE_QUOTA}}, True),
    "Anthropic, the month's spend": (429, {"type": "error", "error": {
        "type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}}, False),
    "Anthropic, billing": (402, {"error": {"type": "billing_error"}}, False),
    "Gemini, a limit of a minute": (429, gemini(MINUTE), True),
    "Gemini, a limit of a day": (429, gemini(DAY), False),
    "Gemini, both": (429, gemini(MINUTE, DAY), False),
    "Gemini, the tokens of a day": (429, gemini("GenerateContentInputTokensPerModelPerDay-FreeTier"), False),
    "Gemini, without details": (429, [{"error": {"code": 429, "message": GOOGLE_QUOTA}}], True),
    "Moonshot, an empty account": (429, {"error": {"type": "exceeded_current_quota_error"}}, False),
    "Moonshot, a limit": (429, {"error": {"type": "rate_limit_reached_error"}}, True),
    "Moonshot, overload": (429, {"error": {"type": "engine_overloaded_error"}}, True),
    "Together, a limit of a minute": (429, {"error": {"message": "billing", "type": "credit_limit"}}, True),
    "Together, an empty account": (402, {"error": {"message": "x", "type": "credit_limit"}}, False),
    "Cerebras, a limit of a minute": (429, {"type": "too_many_tokens_error", "code": "token_quota_exceeded"}, True),
    "OpenRouter, a limit of a minute": (429, {"error": {"message": "Rate limit exceeded: free-models-per-min."}}, True),
    "OpenRouter, a limit of a day": (429, {"error": {"message": "Rate limit exceeded: free-models-per-day. Add"}}, False),
    "OpenRouter, the same in a 200": (200, {"error": {"code": 429, "message": "free-models-per-day"}}, False),
    "OpenRouter, no credits": (402, {"error": {"code": 402, "message": "Insufficient credits"}}, False),
    "OpenRouter, too much in flight": (402, {"error": {
        "code": 402, "metadata": {"limit_source": "openrouter_in_flight_budget"}}}, True),
    "OpenRouter, a spent key": (403, {"error": {
        "code": 403, "metadata": {"limit_source": "openrouter_key_limit"}}}, False),
    "Moonshot, an empty account as 403": (403, {"error": {"type": "exceeded_current_quota_error"}}, False),
    "Alibaba, an empty account as 400": (400, {"error": {"code": "Arrearage", "type": "Arrearage"}}, False),
    "Volcengine, an empty account as 403": (403, {"error": {"code": "AccountOverdueError"}}, False),
    "One API, an empty account as 403": (403, {"error": {"code": "insufficient_user_quota"}}, False),
    "LiteLLM, a spent budget as 400": (400, {"error": {"type": "budget_exceeded", "code": "400"}}, False),
    "Z.AI, an empty account": (429, {"error": {"code": "1113", "message": "x"}}, False),
    "Z.AI, too much at once": (429, {"error": {"code": "1302", "message": "x"}}, True),
    "DeepSeek, no balance": (402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}, False),
    "AWS, a limit as 400": (400, {"__type": "ThrottlingException", "message": "x"}, True),
    "a code with the words in it": (429, {"error": {"code": "quota_exceeded", "message": GOOGLE_QUOTA}}, True),
    "the words alone": (429, {"error": {"message": f"{GOOGLE_QUOTA} No credit left."}}, True),
    "nothing at all": (429, b"", True),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_a_spent_account_is_told_from_a_rate_limit(name):
    """By codes and types, never by the words "quota", "credit" and "billing", which rate limits have, too."""
    status, body, passes = LIMITS[name]
    error = judge(reply(body, status))
    assert type(error) is (errors.RateLimitError if passes else errors.QuotaExceededError)
    assert (is_transient(error), is_refusal(error), is_fatal_for_all(error)) == (passes, passes, not passes)


def test_a_402_that_names_a_delay_passes():
    """OpenRouter's in-flight budget; by its documentation, one without Retry-After is an empty account."""
    assert type(judge(reply(b"", 402, retry_after="3"))) is errors.RateLimitError
    assert type(judge(reply(b"", 402))) is errors.QuotaExceededError


def test_one_code_means_something_else_at_one_host():
    """Alibaba Model Studio calls its limit of tokens a minute ``insufficient_quota``."""
    body = {"error": {"code": "insufficient_quota", "type": "insufficient_quota"}}
    alibaba = reply(body, 429, base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1")
    assert type(judge(alibaba)) is errors.RateLimitError
    assert type(judge(reply(body, 429, base_url="https://notaliyuncs.com/v1"))) is errors.QuotaExceededError


TOO_LARGE = {
    "OpenAI": (429, {"error": {
        "message": "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested"
        " 45120. The input or output tokens must be reduced.", "type": "tokens", "code": "rate_limit_exceeded"}}),
    "numbers alone": (429, {"error": {"message": "Limit: 30,000; requested: 45,120", "code": "rate_limit_exceeded"}}),
    "the other way round": (429, {"error": {"message": "Requested 45120 tokens, above the limit of 30000"}}),
    "words alone": (429, {"error": {"message": "Request too large for model."}}),
    "by code": (429, {"error": {"message": "x", "code": "request_too_large"}}),
    "OpenRouter": (402, {"error": {"message": "x", "metadata": {"reason": "weight_exceeds_budget"}}}),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_refusal_of_one_prompt_that_is_too_large(name):
    """It is final for that prompt, and no reason to slow anybody down."""
    status, body = TOO_LARGE[name]
    error = judge(reply(body, status))
    assert (type(error), error.code) == (errors.RateLimitError, "request_too_large")
    assert not is_transient(error)
    assert not is_refusal(error)
    assert not is_fatal_for_all(error)


@pytest.mark.parametrize(
    "message",
    [
        "Rate limit reached on tokens per min (TPM): Limit 6000, Used 5034, Requested 1443. Please try again in 4.77s.",
        "Rate limit reached on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.",
        "* Quota exceeded for metric: generate_content_free_tier_requests, limit: 0, model: gemini-3-pro",
        "Rate limit reached for gpt-4o-mini on tokens per min. Limit: 200000 / min. Requested 40000.",
        "limit reached", "requested a lot",
    ],
)  # fmt: skip
def test_a_refusal_of_a_prompt_that_fits_is_a_rate_limit(message):
    error = judge(reply({"error": {"message": message, "type": "tokens", "code": "rate_limit_exceeded"}}, 429))
    assert (error.code, is_transient(error), is_refusal(error)) == ("rate_limit_exceeded", True, True)


@pytest.mark.parametrize("status", [400, 413, 500])
@pytest.mark.parametrize("code", ["context_length_exceeded", "exceed_context_size_error"])
def test_a_prompt_too_long_is_final_with_any_status(status, code):
    """llama.cpp has said so with a 500."""
    error = judge(reply({"error": {"code": status, "type": code, "message": "x"}}, status))
    assert (error.code, is_transient(error), is_refusal(error)) == (code, False, False)


@pytest.mark.parametrize("code", ["json_validate_failed", "tool_use_failed", "output_parse_failed"])
def test_a_failure_of_the_model_told_as_a_400_is_tried_again(code):
    error = judge(reply({"error": {"type": "invalid_request_error", "code": code, "failed_generation": "{"}}, 400))
    assert (type(error), error.code) == (errors.BadRequestError, code)
    assert is_transient(error)


def test_a_wrong_key_told_as_a_400():
    """Gemini's; it ends the map as a 401 does."""
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
    error = judge(reply([{"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": details}}], 400))
    assert (type(error), error.status_code, error.code) == (errors.AuthenticationError, 400, "API_KEY_INVALID")
    assert is_fatal_for_all(error)


PAGE = b"""<!DOCTYPE html><html><head><title>Sign in</title><style>p {color: red}</style></head>
<body><script>steal()</script><h1>Sign&nbsp;in</h1><p>to the &lt;company&gt; network</p></body></html>"""


@pytest.mark.parametrize("status", [200, 404, 405, 502])
def test_a_web_page_shows_its_address_and_its_text(status):
    """For a login page or a wrong path, the message has the URL and the text of the page."""
    error = judge(reply(PAGE, status, base_url="https://example.com/v1", content_type="text/html"))
    assert "Sign in to the <company> network" in str(error)
    assert "steal" not in str(error)
    assert "color" not in str(error)
    assert status == 502 or "base_url https://example.com/v1" in str(error)


def test_a_wrong_path_without_a_page():
    """FastAPI's stock answer, and a plain text, say that no API is there; an API's own words are kept."""
    for body in ({"detail": "Not Found"}, b"404 page not found", b"", {"error": "Not Found"}):
        assert "no chat API at base_url http://127.0.0.1/v1" in str(judge(reply(body, 404)))
    error = judge(reply({"error": "model 'x' not found"}, 404))
    assert str(error) == "404: model 'x' not found (base_url http://127.0.0.1/v1)"
    error = judge(reply({"error": {"message": "no model x", "code": "model_not_found"}}, 404))
    assert str(error) == "404: no model x"


CONTROL = "\r\n\x1b[31m\x1b]0;x\x07\x7f\x85\x9b\u2028\u2029\u202e\u2066\u200f\ud800"


def test_control_characters_reach_no_code_id_or_message():
    """They could forge lines of a log, or control a terminal."""
    body = {"error": {"message": f"a{CONTROL}b", "code": f"c{CONTROL}d", "param": f"e{CONTROL}f"}}
    error = judge(reply(body, 400, x_request_id=f"r{CONTROL}s"))
    for shown in (str(error), error.code, error.request_id):
        assert shown.isprintable()
        assert "\\x1b[31m" in shown
    assert error.body.replace("\n", "").isprintable()


def test_codes_ids_and_messages_are_of_bounded_length():
    body = {"error": {"message": "m" * 60_000, "code": "c" * 60_000}}
    error = judge(reply(body, 400, x_request_id="r" * 60_000))
    assert len(str(error)) <= 500
    assert len(error.code) <= 100
    assert len(error.request_id) <= 100
    assert len(error.body) <= 500


def test_a_finish_reason_with_control_characters():
    assert judge(reply(completion("hi", "x\x1b[31m" + "y" * 60_000))).finish_reason.startswith("x\\x1b[31myyy")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_does_not_have_become_null(text):
    """Some servers write them as log probabilities; the journal's line has to be JSON."""
    data = json.dumps(completion("hi"))[:-1] + f', "logprob": {text}}}'
    answer = judge(reply(data.encode()))
    assert (answer.text, answer.response["logprob"]) == ("hi", None)
    json.dumps(answer.response, allow_nan=False)


@pytest.mark.parametrize(
    ("headers", "body", "request_id"),
    [
        ({"x_request_id": "a", "cf_ray": "b"}, {}, "a"),
        ({"request_id": "a"}, {}, "a"),
        ({"apim_request_id": "a"}, {}, "a"),
        ({}, {"type": "error", "request_id": "a"}, "a"),
        ({}, {}, None),
    ],
)
def test_the_request_id_is_found(headers, body, request_id):
    assert reply(body, 400, **headers).request_id == request_id


def test_every_row_of_the_tables_is_a_pattern_that_some_name_matches():
    """And every meaning has a status for a 2xx."""
    for meaning, names, where in CODES:
        assert meaning in STATUS_OF
        assert where
        plain = [name for name in names.split() if name.replace("_", "").isalnum()]
        assert all(code_meaning([name]) is not None for name in plain)
    assert all(meaning in STATUS_OF for meaning, _, _ in WORDS)


def test_no_pattern_looks_for_quota_credit_or_billing_in_a_text():
    assert not [pattern for _, pattern, _ in WORDS if any(word in pattern for word in ("quota", "credit", "billing"))]
