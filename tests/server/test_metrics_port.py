"""The metrics port by itself: what it answers, and what it says when it cannot."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from weft_registry.errors import UnavailableError
from weft_server.metrics_port import MetricsPort


class Answers(Collector):
    """One metric, which counts the scrapes; or a refusal."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.error: Exception | None = None

    def collect(self) -> Iterator[Metric]:
        if self.error is not None:
            raise self.error
        self.scrapes += 1
        yield GaugeMetricFamily("weft_scrapes", "So far.", value=self.scrapes)


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def port(answers: Answers) -> Iterator[MetricsPort]:
    port = MetricsPort(answers, "127.0.0.1", 0)
    yield port
    port.close()


def get(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{address}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_every_scrape_asks_again_and_starting_asks_nothing(port: MetricsPort, answers: Answers) -> None:
    assert answers.scrapes == 0
    for scrape in (1.0, 2.0):
        status, text = get(port.address, "/metrics")
        assert status == 200
        assert f"weft_scrapes {scrape}\n" in text


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/health", "/metrics%2f"])
def test_only_metrics_are_there(port: MetricsPort, answers: Answers, path: str) -> None:
    status, text = get(port.address, path)
    assert (status, text) == (404, "only /metrics is here\n")
    assert answers.scrapes == 0


def test_nothing_can_be_posted(port: MetricsPort, answers: Answers) -> None:
    assert get(port.address, "/metrics", "POST")[0] == 405
    assert answers.scrapes == 0


def test_a_server_without_time_says_so_and_answers_the_next_one(port: MetricsPort, answers: Answers) -> None:
    answers.error = UnavailableError("the server is stopping")
    assert get(port.address, "/metrics") == (503, "the server is stopping\n")
    answers.error = None
    assert get(port.address, "/metrics")[0] == 200


def test_a_taken_port_is_an_error_that_names_it_and_the_way_out(port: MetricsPort, answers: Answers) -> None:
    taken = int(port.address.rpartition(":")[2])
    with pytest.raises(UnavailableError, match=rf"127\.0\.0\.1:{taken} for metrics.*--metrics-port 0"):
        MetricsPort(answers, "127.0.0.1", taken)


def test_a_host_that_is_not_here_is_an_error_that_names_it(answers: Answers) -> None:
    with pytest.raises(UnavailableError, match=r"192\.0\.2\.1:0 for metrics"):
        MetricsPort(answers, "192.0.2.1", 0)


def test_a_reader_who_stalls_holds_up_nobody(port: MetricsPort) -> None:
    host, _, number = port.address.rpartition(":")
    with socket.create_connection((host, int(number))) as stalled:
        stalled.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert get(port.address, "/metrics")[0] == 200


def test_a_closed_port_is_free_again(answers: Answers) -> None:
    first = MetricsPort(answers, "127.0.0.1", 0)
    number = int(first.address.rpartition(":")[2])
    first.close()
    again: Any = MetricsPort(answers, "127.0.0.1", number)
    assert get(again.address, "/metrics")[0] == 200
    again.close()
