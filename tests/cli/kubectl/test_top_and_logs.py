"""Load, speed and logs of replicas, in a cluster and on this machine."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from rich.console import Console

from octavo_cli import top_view
from octavo_cli.errors import CliError
from octavo_cli.kubectl import __main__ as plugin
from octavo_cli.kubectl import logs, top
from octavo_cli.kubectl.cluster import MAX_CONNECTIONS
from octavo_cli.replica_metrics import TTFT, Scrape, Window, measure, quantile, read_scrape
from octavo_server.metrics import EngineSnapshot, ServerMetrics
from octavo_testing.kube_objects import FakeCluster, a_pod

PODS = "/api/v1/namespaces/team/pods"


def exposed(**snapshot: float) -> str:
    """What a real server exposes."""
    return ServerMetrics("tiny", lambda: EngineSnapshot(**snapshot)).render().decode()  # type: ignore[arg-type]


def text_of(renderable: object) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    with console.file:
        console.print(renderable)
    return console.export_text()


# Measures


def test_load_is_read_by_the_names_that_a_server_really_exposes() -> None:
    scrape = read_scrape(exposed(pressure=1.25, num_running=3, num_waiting=2, kv_usage=0.5), 1.0)

    found = measure(scrape, scrape)

    assert (found.pressure, found.running, found.waiting, found.kv_usage) == (1.25, 3, 2, 0.5)
    assert {"vllm:generation_tokens_total", "vllm:prefix_cache_hits_total", f"{TTFT}_bucket"} <= set(scrape.values)
    assert (found.tokens_per_s, found.first_token_s, found.hit_ratio) == (None, None, None)


def test_speed_is_growth_over_time() -> None:
    before = Scrape(
        at_s=10.0, values={"vllm:generation_tokens_total": 100, "vllm:prefix_cache_queries_total": 50}, first_token={}
    )
    now = Scrape(
        at_s=14.0,
        values={
            "vllm:generation_tokens_total": 300,
            "vllm:prefix_cache_queries_total": 90,
            "vllm:prefix_cache_hits_total": 10,
        },
        first_token={},
    )

    found = measure(before, now)

    assert (found.tokens_per_s, found.hit_ratio) == (50.0, 0.25)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [([], None), ([0.3] * 100, 0.4875), ([0.3] * 90 + [3.0] * 10, 2.5), ([9.0], 4.0)],
)
def test_the_quantile_is_prometheus_own(observed: list[float], expected: float | None) -> None:
    """Linear within the bucket of the rank, and the greatest finite bound beyond it."""
    registry = CollectorRegistry()
    histogram = Histogram(TTFT, "t", buckets=(0.25, 0.5, 1.0, 4.0), registry=registry)
    for value in observed:
        histogram.observe(value)

    found = quantile(0.95, read_scrape(generate_latest(registry).decode(), 0.0).first_token)

    assert found == (None if expected is None else pytest.approx(expected))


def test_a_server_that_started_anew_does_not_give_a_negative_speed() -> None:
    window = Window()
    for at_s, tokens in ((0.0, 500.0), (2.0, 600.0)):
        window.add(Scrape(at_s=at_s, values={"vllm:generation_tokens_total": tokens}, first_token={}))

    restarted = window.add(Scrape(at_s=4.0, values={"vllm:generation_tokens_total": 5.0}, first_token={}))
    later = window.add(Scrape(at_s=6.0, values={"vllm:generation_tokens_total": 25.0}, first_token={}))

    assert restarted.tokens_per_s is None
    assert later.tokens_per_s == 10.0


def test_old_scrapes_are_forgotten() -> None:
    window, found = Window(), None
    for at_s in range(0, 100, 2):
        tokens = 0.0 if at_s < 60 else 10.0 * (at_s - 60)
        found = window.add(Scrape(at_s=float(at_s), values={"vllm:generation_tokens_total": tokens}, first_token={}))

    assert found is not None
    assert found.tokens_per_s == pytest.approx(10.0)


# The table


def test_each_replica_has_its_line_and_what_cannot_be_read_says_why() -> None:
    cluster = FakeCluster(
        {
            PODS: [a_pod("qwen-b"), a_pod("qwen-a"), a_pod("qwen-c", ready=False, podIP="")],
            f"{PODS}/qwen-a:8000/proxy/metrics": exposed(pressure=0.7, num_running=3),
            f"{PODS}/qwen-b:8000/proxy/metrics": 403,
        }
    )

    text = text_of(top_view.TopView(lambda: top.look(cluster, "team", "qwen")).table())

    lines = [line.split() for line in text.splitlines()[1:]]
    assert [line[1] for line in lines] == ["qwen-a", "qwen-b", "qwen-c"]
    assert lines[0][:5] == ["team/qwen", "qwen-a", "0.70", "3", "0"]
    assert "403" in " ".join(lines[1])
    assert lines[2][-1] == "Starting"


@pytest.mark.parametrize("answer", ["<html>", '{"detail": "Not Found"}', "a{", f'{TTFT}_bucket{{x="1"}} 3', "a b c d"])
def test_what_is_no_metrics_is_said_of_its_replica_alone(answer: str) -> None:
    cluster = FakeCluster(
        {
            PODS: [a_pod("qwen-a"), a_pod("qwen-b")],
            f"{PODS}/qwen-a:8000/proxy/metrics": answer,
            f"{PODS}/qwen-b:8000/proxy/metrics": exposed(pressure=0.7),
        }
    )

    text = text_of(top_view.TopView(lambda: top.look(cluster, "team", "qwen")).table())

    first, second = text.splitlines()[1:]
    assert first.rstrip().endswith("its /metrics is none of a server")
    assert second.split()[2] == "0.70"


def test_a_pod_that_does_not_answer_holds_up_no_other() -> None:
    names = [f"qwen-{number}" for number in range(MAX_CONNECTIONS)]
    together = threading.Barrier(len(names), timeout=10)

    class SlowCluster(FakeCluster):
        def text(self, path: str, **query: str) -> str:
            together.wait()
            return exposed(pressure=0.7)

    found = top.look(SlowCluster({PODS: [a_pod(name) for name in names]}), "team", "qwen")

    assert [each.name for each in found] == names


def test_in_a_pipe_one_table_comes_after_one_interval() -> None:
    waits: list[float] = []
    looks: list[int] = []

    def look() -> list[top_view.Replica]:
        looks.append(1)
        return [top_view.Replica(model="m", name="m-0", metrics=exposed())]

    console = Console(width=120, record=True, force_terminal=False, file=io.StringIO())
    parser = plugin.parser(only="top")
    top.add_arguments(parser.subcommands["top"])
    with console.file:
        view = top_view.TopView(look, clock=lambda: sum(waits))
        assert top_view.show(view, parser.parse_args(["top", "--interval=3"]), console, waits.append) == 0

    assert (waits, len(looks)) == ([3.0], 2)
    assert console.export_text().count("m-0") == 1


def test_an_interval_of_nothing_is_refused() -> None:
    parser = plugin.parser(only="top")
    top.add_arguments(parser.subcommands["top"])

    with pytest.raises(CliError, match="--interval is 0, it must be greater than 0"):
        top_view.show(top_view.TopView(list), parser.parse_args(["top", "--interval=0"]), Console(quiet=True))


# Logs


def told(cluster: FakeCluster, *arguments: str) -> list[str]:
    parser = plugin.parser(only="logs")
    logs.add_arguments(parser.subcommands["logs"])
    console = Console(width=120, record=True, file=io.StringIO())
    with console.file:
        logs.run(cluster, parser.parse_args(["logs", *arguments]), console)
    return console.export_text().splitlines()


def a_cluster(*pods: str) -> FakeCluster:
    return FakeCluster(
        {PODS: [a_pod(pod) for pod in pods], **{f"{PODS}/{pod}/log": f"{pod} 1\n{pod} 2" for pod in pods}}
    )


def test_lines_of_several_pods_bear_their_name_and_of_one_pod_none() -> None:
    assert told(a_cluster("a", "b"), "qwen") == ["a: a 1", "a: a 2", "b: b 1", "b: b 2"]
    assert told(a_cluster("a"), "qwen") == ["a 1", "a 2"]
    assert told(a_cluster("a", "b"), "qwen", "--pod=b") == ["b 1", "b 2"]


def test_following_several_pods_gives_all_lines_and_ends_with_the_last() -> None:
    assert sorted(told(a_cluster("a", "b"), "qwen", "-f")) == ["a: a 1", "a: a 2", "b: b 1", "b: b 2"]


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_a_pod_without_a_log_does_not_take_the_others_theirs(
    follow: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = a_cluster("a", "b", "c")
    cluster.objects[f"{PODS}/b/log"] = 400

    lines = told(cluster, "qwen", *follow)

    assert sorted(lines) == ["a: a 1", "a: a 2", "c: c 1", "c: c 2"]
    assert "/b/log: 400" in capsys.readouterr().err
    with pytest.raises(CliError, match="400"):
        told(cluster, "qwen", "--pod=b", *follow)


def test_what_is_asked_of_the_api_server() -> None:
    cluster = a_cluster("a")
    told(cluster, "qwen", "-p", "--tail=5", "--since=60")

    assert cluster.queries[-1] == {"container": "server", "previous": "true", "tailLines": "5", "sinceSeconds": "60"}


def test_a_pod_of_another_model_is_refused_by_name() -> None:
    with pytest.raises(CliError, match="qwen has no pod 'x'; it has a"):
        told(a_cluster("a"), "qwen", "--pod=x")


# On this machine


def test_local_replicas_are_read_where_they_listen(tmp_path: Path) -> None:
    import os

    from octavo_cli.local import top as local_top
    from octavo_cli.local.state import ReplicaState, RunFolder, state_home

    env = {"XDG_STATE_HOME": str(tmp_path)}
    folder = RunFolder(state_home(env), pid=os.getpid(), now_s=1.0)
    replicas = [
        ReplicaState(model="m", name="m-0", url="", is_ready=False),
        ReplicaState(model="m", name="m-1", url="http://127.0.0.1:1", is_ready=False),
    ]
    folder.write(url="u", internal_url="i", rows=[], replicas=replicas)

    found = local_top.look(env)

    assert [each.name for each in found] == ["m-0", "m-1"]
    assert found[0].note == "not running"
    assert found[1].note.startswith("does not answer: ")
