"""`weft generate` and the residency commands against a scripted server."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

Weft = Callable[..., Result]
DIGEST = "sha256:" + "ab" * 32


def test_generate_prints_the_text_and_nothing_else(weft: Weft, server: Any) -> None:
    answer = weft("generate", "acme/topics:v1", "The")
    assert answer.stdout == "Red fox \x1b[31mruns.\n"
    assert answer.stderr == ""
    (request,) = server.script.requests
    assert (request.adapter_id, request.prompt) == ("acme/topics:v1", "The")


def test_a_dash_is_the_base_and_a_dash_is_stdin(weft: Weft, server: Any) -> None:
    weft("generate", "-", "-", stdin="Once upon\na time\n")
    (request,) = server.script.requests
    assert (request.adapter_id, request.prompt) == ("", "Once upon\na time")


def test_generate_passes_every_option_on(weft: Weft, server: Any) -> None:
    options = "--max-new-tokens 5 --min-new-tokens 1 --temperature 0.5 --top-k 3 --top-p 0.5 --seed 7 --ignore-eos"
    weft("generate", "acme/t", "x", *options.split(), "--stop", "A", "--stop", "B", "--timeout", "40")
    (request,) = server.script.requests
    sampling, stopping = request.sampling, request.stopping
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 3, 0.5, 7)
    assert (stopping.max_new_tokens, stopping.min_new_tokens, stopping.ignore_eos) == (5, 1, True)
    assert list(stopping.stop_sequences) == ["A", "B"]
    assert 20 < server.script.time_left_s[0] < 60


def test_generate_leaves_to_the_server_what_it_was_not_told(weft: Weft, server: Any) -> None:
    weft("generate", "acme/t", "x")
    (request,) = server.script.requests
    assert not request.HasField("sampling")
    assert not request.HasField("stopping")
    assert not request.HasField("logprobs")


def test_chat_sends_messages(weft: Weft, server: Any) -> None:
    weft("generate", "acme/t", "Hi", "--chat")
    weft("generate", "acme/t", "Hi", "--system", "Be brief.")
    chats = [[(m.role, m.content) for m in request.messages.messages] for request in server.script.requests]
    assert chats == [[("user", "Hi")], [("system", "Be brief."), ("user", "Hi")]]


def test_generate_json_is_the_whole_completion(weft: Weft, server: Any) -> None:
    answer = json.loads(weft("generate", "acme/t", "x", "--json", "--logprobs", "2").stdout)
    logprobs = answer.pop("logprobs")
    assert answer == {
        "text": "Red fox \x1b[31mruns.",
        "token_ids": [10, 11, 12, 13],
        "part_digests": [],
        "finish_reason": "eos_token",
        "stop_sequence": "",
        "input_tokens": 5,
        "generated_tokens": 4,
        "cached_tokens": 2,
        "adapter_digest": DIGEST,
    }
    assert len(logprobs) == 4
    assert logprobs[0]["chosen"] == {"token_id": 10, "text": "Red", "logprob": -0.5}
    assert [token["token_id"] for token in logprobs[0]["top"]] == [50, 51]


def test_logprobs_without_json_are_refused_and_not_ignored(weft: Weft, server: Any) -> None:
    assert "--json" in weft("generate", "acme/t", "x", "--logprobs", "2", status=2).stderr
    assert server.script.requests == []


@pytest.mark.parametrize("reference", ["", " "])
def test_an_empty_reference_is_refused_and_not_the_base(reference: str, weft: Weft, server: Any) -> None:
    assert 'name an adapter, or "-"' in weft("generate", reference, "x", status=2).stderr
    assert server.script.requests == []


def test_bytes_that_are_no_text_are_refused_by_name(weft: Weft, server: Any) -> None:
    # What Python makes of the byte FF on a command line or on stdin.
    no_text = "a\udcff"
    for arguments in (("acme/t", no_text), (no_text, "x"), ("acme/t", "x", "--stop", no_text)):
        assert "surrogates not allowed" in weft("generate", *arguments, status=1).stderr
    assert "surrogates not allowed" in weft("generate", "acme/t", no_text, "--chat", status=1).stderr
    assert "is not UTF-8 text" in weft("load", no_text, status=1).stderr
    assert server.script.requests == []


def test_stats_go_to_stderr(weft: Weft, server: Any) -> None:
    answer = weft("generate", "acme/t", "x", "--stats")
    assert answer.stderr == f"5 tokens in (2 cached), 4 out, ended by eos_token; adapter {DIGEST}\n"
    assert "none: the base model" in weft("generate", "-", "x", "--stats").stderr


def test_an_unknown_adapter_is_one_line(weft: Weft, server: Any) -> None:
    answer = weft("generate", "acme/gone", "x", status=1)
    assert answer.stderr == "error: no adapter acme/gone; nearest: acme/gold\n"
    assert answer.stdout == ""


def test_violations_are_listed_one_a_line(weft: Weft, server: Any) -> None:
    assert weft("generate", "-", "refuse", status=1).stderr.splitlines() == [
        "error: two fields are refused",
        "  - sampling.top_k: at most 7",
        "  - stopping: too many",
    ]


def test_a_negative_temperature_is_wrong_usage(weft: Weft, server: Any) -> None:
    assert "--temperature" in weft("generate", "-", "x", "--temperature", "-1", status=2).stderr


def test_a_deadline_is_an_error_after_the_text_there_was(weft: Weft, server: Any) -> None:
    answer = weft("generate", "-", "for ever", "--timeout", "0.5", status=1)
    assert answer.stdout.startswith("tick ")
    assert "deadline" in answer.stderr
    assert server.script.cancelled.wait(20)


def test_no_server_is_an_error_that_says_how_to_start_one(weft: Weft) -> None:
    answer = weft("ps", "--server", "127.0.0.1:1", status=1)
    assert "weft serve" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_ps_lists_what_is_resident(weft: Weft, server: Any) -> None:
    answer = weft("ps")
    header, row = answer.stdout.splitlines()
    titles = ["REFERENCE", "KIND", "DIGEST", "TIER", "SIZE", "LEASES", "REQUESTS", "TOKENS", "IDLE", "MERGED"]
    assert header.split() == titles
    cells = ["acme/topics:production", "lora", "abababababab", "host", "3.0", "MiB", "2", "17", "75.0%", "2.5", "s"]
    assert row.split() == cells
    assert answer.stderr == (
        "adapters 3.0 MiB of 1.0 GiB, merged weights 5.0 MiB of 1.0 GiB, on disk 7.0 MiB of 10.0 GiB\n"
    )


def test_ps_disk_lists_the_disk_and_says_below_what_is_wrong(weft: Weft, server: Any) -> None:
    answer = weft("ps", "--disk")
    assert [row.split()[3] for row in answer.stdout.splitlines()] == ["TIER", "host", "disk"]
    assert answer.stderr.splitlines()[:2] == [
        f"quarantined: acme/bad ({DIGEST}) since 2026-01-31T12:00:00Z: numbers that are not finite",
        "not reloaded: acme/bad:live moved, and cannot be loaded",
    ]


def test_ps_json_has_bytes_and_limits(weft: Weft, server: Any) -> None:
    residency = json.loads(weft("ps", "--json").stdout)
    (adapter,) = residency.pop("adapters")
    assert residency == {
        "resident_bytes": 3 << 20,
        "limit_bytes": 1 << 30,
        "overlay_bytes": 5 << 20,
        "overlay_limit_bytes": 1 << 30,
        "disk_bytes": 7 << 20,
        "disk_limit_bytes": 10 << 30,
        "generated_tokens": 40,
    }
    assert adapter == {
        "reference": "acme/topics:production",
        "digest": DIGEST,
        "kind": "lora",
        "resident_bytes": 3 << 20,
        "lease_count": 2,
        "merged": False,
        "requests_served": 17,
        "idle_s": 2.5,
        "hot": False,
        "tier": "host",
        "quarantined": "",
        "reload_problem": "",
        "generated_tokens": 30,
    }


def test_merge_and_unmerge_report_and_json(weft: Weft, server: Any) -> None:
    assert "5.0 MiB beside the base, built in 40 ms, switched in 80 us" in weft("merge", "acme/t").stdout
    assert weft("ps").stdout.splitlines()[1].split()[-1] == "merged"
    assert json.loads(weft("unmerge", "--json").stdout) == {"adapter_digest": DIGEST, "switch_s": 9e-05}
    assert weft("unmerge", status=1).stderr == "error: nothing is merged\n"
    assert weft("ps").stdout.splitlines()[1].split()[-1] == "hot"
    assert "5.0 MiB beside the base, kept ready, switched in 80 us" in weft("merge", "acme/t").stdout
    merged = json.loads(weft("merge", "acme/t", "--json").stdout)
    sizes = {"adapter_digest": DIGEST, "overlay_bytes": 5 << 20}
    assert merged == {**sizes, "build_s": 0.0, "switch_s": 8e-05, "hot": True, "switch_steps": 1}


def test_load_and_unload_report_and_json(weft: Weft, server: Any) -> None:
    assert DIGEST in weft("load", "acme/t").stdout
    assert json.loads(weft("load", "acme/t", "--json").stdout)["digest"] == DIGEST
    assert weft("unload", "acme/t").stdout == "unloaded acme/t: 3.0 MiB freed\n"
    assert json.loads(weft("unload", "acme/t", "--json").stdout) == {"reference": "acme/t", "freed_bytes": 3 << 20}
