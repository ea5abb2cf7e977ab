"""Requests say what the keywords say, and answers lose nothing."""

import pytest

from weft.v1 import inference_pb2 as pb
from weft_client import messages as wire
from weft_client.results import Chunk, Completion, Summary
from weft_registry.errors import InvalidInputError, UnavailableError

SUMMARY = Summary("length", "", 3, 2, 0, "")


def test_absent_options_are_absent_on_the_wire() -> None:
    request = wire.generate_request("hello", "", None, None, {})
    assert request == pb.GenerateRequest(prompt="hello")
    none: wire.GenerateOptions = {"temperature": None, "seed": None, "stop": (), "time_limit_s": None, "logprobs": None}
    assert wire.generate_request("hello", "", None, None, none) == request


def test_zero_is_said_and_not_taken_for_absent() -> None:
    request = wire.generate_request("hello", "", None, None, {"temperature": 0, "seed": 0, "top_k": 0, "logprobs": 0})
    assert request.HasField("logprobs")
    for field in ("temperature", "seed", "top_k"):
        assert request.sampling.HasField(field), field


def test_every_option_reaches_its_field() -> None:
    options = wire.GenerateOptions(
        max_new_tokens=5,
        min_new_tokens=2,
        temperature=0.5,
        top_k=3,
        top_p=0.25,
        seed=2**64 - 1,
        stop=["a", "b"],
        include_stop=True,
        ignore_eos=True,
        time_limit_s=1.5,
        logprobs=2,
    )
    assert options.keys() == wire.GenerateOptions.__annotations__.keys()
    request = wire.generate_request(None, "acme/topics:v1", None, [1, 2], options)
    assert request.adapter_id == "acme/topics:v1"
    assert list(request.token_ids.ids) == [1, 2]
    sampling, stopping = request.sampling, request.stopping
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 3, 0.25, 2**64 - 1)
    assert (stopping.max_new_tokens, stopping.min_new_tokens) == (5, 2)
    assert list(stopping.stop_sequences) == ["a", "b"]
    assert (stopping.include_stop_sequence, stopping.ignore_eos) == (True, True)
    assert stopping.time_limit.ToMilliseconds() == 1500
    assert request.logprobs == 2


def test_adapters_worn_together_are_one_string_or_a_list() -> None:
    def worn(adapter: wire.Worn) -> tuple[str, list[tuple[str, float]]]:
        request = wire.generate_request("x", adapter, None, None, {})
        return request.adapter_id, [(part.adapter_id, part.weight) for part in request.adapters]

    assert worn("acme/la:v1 + acme/lb*0.5") == worn(["acme/la:v1", ("acme/lb", 0.5)])
    assert worn("acme/la*2") == ("", [("acme/la", 2.0)])
    assert worn("acme/la") == ("acme/la", [])
    assert worn("") == ("", [])
    for text, says in (("acme/la+", "on both sides"), ("acme/la*much", "comes a number"), ("acme/la*nan", "finite")):
        with pytest.raises(InvalidInputError, match=says):
            worn(text)


def test_one_stop_string_is_not_taken_for_its_letters() -> None:
    assert list(wire.generate_request("x", "", None, None, {"stop": "END"}).stopping.stop_sequences) == ["END"]


def test_a_chat_keeps_its_order_and_roles() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    request = wire.generate_request(None, "", chat, None, {})
    assert [(m.role, m.content) for m in request.messages.messages] == [("system", "Be brief."), ("user", "Hi")]


@pytest.mark.parametrize(
    "inputs", [(None, None, None), ("x", [{"role": "user", "content": "y"}], None), ("x", None, [1])]
)
def test_none_or_two_inputs_are_refused(inputs: tuple[object, object, object]) -> None:
    prompt, chat, ids = inputs
    with pytest.raises(InvalidInputError, match="exactly one of prompt, messages and token_ids") as caught:
        wire.generate_request(prompt, "", chat, ids, {})  # type: ignore[arg-type]
    assert caught.value.violations[0].field == "input"


def test_an_empty_input_is_sent_for_the_server_to_refuse() -> None:
    assert wire.generate_request("", "", None, None, {}).WhichOneof("input") == "prompt"
    assert wire.generate_request(None, "", [], None, {}).WhichOneof("input") == "messages"
    assert wire.generate_request(None, "", None, [], {}).WhichOneof("input") == "token_ids"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"seed": -1}, "sampling.seed"),
        ({"top_k": 1 << 40}, "sampling.top_k"),
        ({"max_new_tokens": "many"}, "stopping.max_new_tokens"),
    ],
)
def test_what_does_not_fit_the_wire_is_refused_by_field(options: wire.GenerateOptions, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        wire.generate_request("x", "", None, None, options)
    assert caught.value.violations[0].field == field


def test_token_ids_below_zero_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="token_ids"):
        wire.generate_request(None, "", None, [3, -1], {})


def test_a_message_with_another_key_is_refused_by_its_index() -> None:
    with pytest.raises(InvalidInputError, match=r"messages\[1\]"):
        wire.generate_request(None, "", [{"role": "user", "content": "a"}, {"role": "user", "text": "b"}], None, {})


def test_an_unknown_option_is_a_mistake_in_the_program() -> None:
    with pytest.raises(TypeError, match="max_tokens"):
        wire.generate_request("x", "", None, None, {"max_tokens": 3})  # type: ignore[typeddict-unknown-key]


def test_an_answer_is_parsed_whole() -> None:
    chosen = pb.TokenLogprob(token_id=7, text="a", logprob=-0.25)
    message = pb.GenerateResponse(
        text="ab",
        token_ids=[7, 8],
        logprobs=[pb.PositionLogprobs(chosen=chosen, top=[chosen])],
        summary=pb.GenerateSummary(
            finish_reason=pb.FINISH_REASON_STOP_SEQUENCE,
            stop_sequence="b",
            input_token_count=4,
            generated_token_count=2,
            cached_token_count=1,
            adapter_digest="sha256:" + "0" * 64,
        ),
    )
    completion = wire.parse_completion(message)
    assert (completion.text, completion.token_ids) == ("ab", (7, 8))
    assert (completion.finish_reason, completion.stop_sequence) == ("stop_sequence", "b")
    assert (completion.input_tokens, completion.generated_tokens, completion.cached_tokens) == (4, 2, 1)
    assert completion.adapter_digest == "sha256:" + "0" * 64
    assert completion.logprobs[0].chosen.logprob == -0.25
    assert completion.logprobs[0].top == (completion.logprobs[0].chosen,)


def test_a_finish_reason_of_a_newer_server_is_passed_on() -> None:
    message = pb.GenerateSummary.FromString(b"\x08\x63")
    assert wire.parse_completion(pb.GenerateResponse(summary=message)).finish_reason == "unknown (99)"


def test_chunks_add_up_to_the_completion() -> None:
    chunks = [Chunk("a", (1,), (), None), Chunk("b", (2, 3), (), None), Chunk("", (), (), SUMMARY)]
    completion = Completion.from_chunks(chunks)
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("ab", (1, 2, 3), "length")


def test_half_a_stream_is_no_completion() -> None:
    with pytest.raises(ValueError, match="summary"):
        Completion.from_chunks([Chunk("a", (1,), (), None)])
    with pytest.raises(UnavailableError):
        wire.ended(Chunk("a", (1,), (), None))
    with pytest.raises(UnavailableError):
        wire.ended(None)
