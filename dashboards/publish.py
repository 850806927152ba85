"""What is checked in of the dashboards: classic JSON, and the ConfigMaps that Grafana's sidecar picks up.

The JSON is the product: `tidemark dashboards push`, file provisioning and the sidecar all take it from `generated/`,
none of them builds anything. Keys are sorted and nothing depends on machine or time, so that two builds are the same
bytes. What the SDK writes down although it is only a default that Grafana would take anyway is left out: Grafana's
schemas do not know all of it. A ConfigMap holds at most 1 MiB, hence one per dashboard, without blanks.
Neighbours: `fleet`, `model`, `retraining`, `service` (what is built), `render` (which writes it).
"""

from __future__ import annotations

import json
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as dm

from dashboards import fleet, model, retraining, service

#: File name -> the function that builds it, in the order of their links.
DASHBOARDS = {"fleet": fleet.dashboard, "model": model.dashboard, "retraining": retraining.dashboard,
              "service": service.dashboard}
#: What the sidecar of Grafana's chart looks for, unless its values say otherwise.
SIDECAR_LABEL = ("grafana_dashboard", "1")
SIDECAR_FOLDER = ("grafana_folder", "tidemark")

#: Defaults of kinds of variables that these are not.
_NOT_OF_A_VARIABLE = ("auto", "auto_count", "auto_min", "allowCustomValue")


def pages() -> dict[str, str]:
    """Path from the repository's root -> text, of everything that is made from the dashboards."""
    built = {name: plain(build()) for name, build in DASHBOARDS.items()}
    return {
        **{f"dashboards/generated/{name}.json": json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
           for name, tree in built.items()},
        **{f"deploy/grafana/sidecar/{name}.yaml": _config_map(name, tree) for name, tree in built.items()},
    }


def plain(dashboard: dm.Dashboard) -> dict[str, Any]:
    """A built dashboard as the tree that Grafana reads."""
    tree: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(dashboard))
    for one in tree["templating"]["list"]:
        for key in _NOT_OF_A_VARIABLE:
            one.pop(key, None)
    for panel in tree["panels"]:
        panel.pop("repeatDirection", None)
        if panel["type"] == "table":
            panel["options"].pop("footer", None)    # Grafana 12.2 has it no more
    for shown in (*tree["annotations"]["list"], *tree["links"]):
        shown.pop("placement", None)                # else Grafana 12 hides them in a menu
        if "target" in shown:
            shown["target"]["refId"] = "Anno"       # every query has one; the SDK knows none for tags
    return tree


def _config_map(name: str, tree: dict[str, Any]) -> str:
    text = json.dumps(tree, separators=(",", ":"), sort_keys=True)
    document = {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": tree["uid"],
            "labels": {"app.kubernetes.io/name": "tidemark", "app.kubernetes.io/part-of": "tidemark",
                       SIDECAR_LABEL[0]: SIDECAR_LABEL[1]},
            "annotations": {SIDECAR_FOLDER[0]: SIDECAR_FOLDER[1]},
        },
        "data": {f"{tree['uid']}.json": text},
    }
    head = "# Rendered by `make render` from dashboards/; change it there.\n"
    return head + yaml.safe_dump(document, sort_keys=False, width=1_000_000)
