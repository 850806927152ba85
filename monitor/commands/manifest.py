"""`tidemark manifest MODEL -c FILE`: the Kubernetes object that a retraining of the model would be, as YAML.

Exactly what the launcher sends, with the user's template laid over it, for a launch with an id of zeros. Nothing is sent
anywhere, unless `--server` asks the API server for a dry run: rights, admission, quota and validation answer as they will at
three in the morning, and nothing is stored. Exit code 1 when it refuses.
"""

from __future__ import annotations

import argparse
import json
import sys

import yaml

from monitor.config import KubernetesLauncher, load
from monitor.errors import ConfigError
from monitor.flow import Launch
from monitor.retrain.launch import output_beside
from monitor.retrain.launchers.kubernetes import KubernetesJobs


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark manifest`."""
    parser.add_argument("model", help="the model whose retraining is shown")
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the configuration")
    parser.add_argument("--server", action="store_true", help="also ask the API server, by a dry run")
    parser.add_argument("--json", action="store_true", help="for programs")


def run(args: argparse.Namespace) -> int:
    """Print the objects; with `--server`, after the API server has accepted them."""
    config = load(args.config)
    index, monitor = next(((index, each) for index, each in enumerate(config.monitors) if each.model == args.model), (0, None))
    if monitor is None:
        raise ConfigError(f"MODEL: expected one of the models {', '.join(each.model for each in config.monitors)}, "
                          f"got {args.model!r}; name one that {args.config} has")
    path = f"monitors[{index}].retrain.launcher"
    if monitor.retrain is None or not isinstance(monitor.retrain.launcher, KubernetesLauncher):
        raise ConfigError(f"{path}.type: expected kubernetes, got "
                          f"{monitor.retrain.launcher.__struct_config__.tag if monitor.retrain else 'no retrain'}; "
                          "only that launcher makes objects to show")
    launcher = KubernetesJobs(monitor.retrain.launcher, capture_uri=monitor.retrain.capture_uri, path=path)
    example = "0" * 12
    data_uri = f"{monitor.retrain.capture_uri.rstrip('/')}/{monitor.model}/launches/{example}/data"
    launch = Launch(id=example, model=monitor.model, version=monitor.version or "0", episode=0, launcher="kubernetes",
                    state="submitted", reason="{}", steps=(), columns="[]", data_uri=data_uri, output_uri=output_beside(data_uri))
    manifests = launcher.manifests(launch)
    if args.server:
        launcher.rehearse(launch)
        print(f"The API server accepts {' and '.join(each['kind'] for each in manifests)} in namespace "
              f"{monitor.retrain.launcher.namespace}.", file=sys.stderr)
    if args.json:
        print(json.dumps(manifests, indent=2))
    else:
        print(yaml.safe_dump_all(manifests, sort_keys=False, allow_unicode=True, width=10_000), end="")
    return 0
