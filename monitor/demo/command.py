"""The command `tidemark demo`: flags, and what must be installed for it."""

from __future__ import annotations

import argparse
import importlib.util

from monitor.errors import ConfigError

#: What the demo needs beyond the base installation: module -> package.
NEEDED = {"confluent_kafka": "confluent-kafka", "sklearn": "scikit-learn", "torch": "torch", "safetensors": "safetensors"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `tidemark demo`."""
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of the live view")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT",
                        help="where the page, /metrics and the API are served (default: a free port of this machine)")
    parser.add_argument("--stay", action="store_true", help="when the loop has closed, go on until Ctrl-C: to look at the page")
    parser.add_argument("--rate", type=float, default=1000.0, metavar="EVENTS", help="events a second (default: 1000)")
    parser.add_argument("--seed", type=int, default=11, help="of the camera (default: 11)")
    parser.add_argument("--keep", metavar="FOLDER", help="keep configuration, state, models and captured events here")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 when the loop has closed."""
    absent = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise ConfigError(f"demo: expected the packages of the extra `demo`, got no {', '.join(absent)}; "
                          "install them with: pip install 'tidemark[demo]'")
    if not 300 <= args.rate <= 5000:
        raise ConfigError(f"--rate: expected 300 to 5000 events a second, got {args.rate:g}")
    from monitor.demo.main import Options, run_demo

    return run_demo(Options(as_json=args.json, rate=args.rate, seed=args.seed, listen=args.listen, folder=args.keep,
                            stay=args.stay))
