"""`python -m e2e.cluster up | status | down | tools | images`."""

from __future__ import annotations

import argparse
import sys

from e2e.cluster import octavo, published, tools
from e2e.cluster.errors import ClusterError
from e2e.cluster.lab import NUMBERS, Lab, exclusive
from e2e.cluster.mounts import check_mountable
from e2e.cluster.paths import cache_dir, model_path
from e2e.cluster.target import own_target


def main() -> int:
    """Run one command; the exit status is 1 when it failed and says why."""
    arguments = _parser().parse_args()
    lab = Lab(arguments.name, _say)
    commands = {"up": _up, "status": _status, "down": _down, "tools": _tools, "images": _images}
    try:
        return commands[arguments.command](lab, arguments)
    except ClusterError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _up(lab: Lab, arguments: argparse.Namespace) -> int:
    with exclusive(lab.name, _say):
        check_mountable()
        lab.start()
        if arguments.fake_gpus:
            lab.add_fake_gpus(arguments.fake_gpus)
        if arguments.kwok_nodes:
            lab.add_kwok_nodes(arguments.kwok_nodes, num_gpus=arguments.fake_gpus)
        if not arguments.no_chart:
            _say("installing the chart …")
            octavo.install(own_target(lab))
    _print_addresses(lab)
    return 0


def _status(lab: Lab, arguments: argparse.Namespace) -> int:
    del arguments
    running = lab.processes.running()
    if not lab.is_running():
        print(f"the cluster `{lab.name}` does not run" + (f"; only {', '.join(running)} do" if running else ""))
        return 1
    print(lab.kubectl("get", "nodes"))
    print(lab.kubectl("get", "pods", "--all-namespaces"))
    if _has_chart(lab):
        print(lab.kubectl("get", "modeldeployments", "--all-namespaces"))
    _print_addresses(lab)
    return 0


def _has_chart(lab: Lab) -> bool:
    return lab.kubectl.works("get", "deployment", f"{octavo.RELEASE}-gateway", f"--namespace={octavo.NAMESPACE}")


def _print_addresses(lab: Lab) -> None:
    """What a shell and a person need; only the first line is for eval."""
    print(f"export KUBECONFIG={lab.kubeconfig}")
    if _has_chart(lab):
        target = own_target(lab)
        with octavo.reach(target) as release:
            print(f"# gateway:         {release.gateway_url}/v1")
            print(f"# metrics adapter: {release.metrics_url}")
        print(f"# try it:          {target.kubectl.program} apply -f e2e/cases/modeldeployment.yaml")
        if not model_path().exists():
            print(f"# no model is in {model_path().parent}: ./scripts/demo fetches it; then `up` again")


def _down(lab: Lab, arguments: argparse.Namespace) -> int:
    del arguments
    with exclusive(lab.name, _say):
        lab.stop()
    print(f"the cluster `{lab.name}` is gone")
    return 0


def _tools(lab: Lab, arguments: argparse.Namespace) -> int:
    del arguments
    for tool in tools.TOOLS.values():
        if tool is tools.KWOK:
            # For scale runs alone, which build it when they come.
            continue
        print(tools.ensure(tool, lab.say))
    return 0


def _images(lab: Lab, arguments: argparse.Namespace) -> int:
    del arguments
    folder = lab.images or cache_dir() / "images"
    published.build(folder, lab.say)
    print(f"export {published.VARIABLE}={folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=sys.modules["e2e.cluster"].__doc__)
    parser.add_argument("command", choices=["up", "status", "down", "tools", "images"])
    parser.add_argument("--name", choices=sorted(NUMBERS), default="lab", help="which cluster; `e2e` is the tests'")
    parser.add_argument("--no-chart", action="store_true", help="up: leave the cluster bare")
    parser.add_argument("--kwok-nodes", type=int, default=0, metavar="N", help="up: add N fake nodes")
    parser.add_argument("--fake-gpus", type=int, default=0, metavar="N", help="up: N GPUs a node without a device")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
