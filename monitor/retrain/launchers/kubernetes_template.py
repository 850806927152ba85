"""The user's YAML over the object that tidemark makes: strict, merged as Kubernetes merges, checked before anything starts.

    template = Template.load(settings, path)        ConfigError with the path in the file for all that is wrong with it
    manifest = template.over(manifest)              the object with the user's parts

The file is a part of the object in its own form (`spec.template.spec.volumes` of a Job). Maps are merged key by key. Lists
whose entries have names (containers, env, volumes, volumeMounts, imagePullSecrets, parameters ...) are merged by name;
`tolerations` and `envFrom` are added to; any other list replaces ours. Null removes nothing: it is refused.

What would break what tidemark answers for is refused with its path and the setting to use instead: names and our labels,
the contract's variables, what a setting decides, the volumes and mounts of ours, and whatever weakens the security
settings. Containers that are added get those, too. Keys that no Kubernetes of our time knows are refused where we know
the form (the kind's spec, pods, containers); deeper ones are the API server's to refuse: `tidemark manifest --server`.

Cost: once at start. Neighbours: `kubernetes_kinds` says where a kind keeps its pods, `kubernetes_fields` knows the forms.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monitor import config
from monitor.config_file import read_mapping
from monitor.errors import ConfigError
from monitor.retrain.launchers import kubernetes_fields as forms
from monitor.retrain.launchers import kubernetes_pod as pod
from monitor.retrain.launchers.kubernetes_client import Manifest
from monitor.retrain.launchers.kubernetes_kinds import KINDS

FILE_BYTES = 262_144
#: Lists that are merged entry by entry, and what an entry is known by.
_NAMED = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath",
          "imagePullSecrets": "name", "replicatedJobs": "name", "runtimePatches": "manager", "workerGroupSpecs": "groupName",
          "parameters": "name", "params": "name"}
#: Lists that are added to.
_ADDED = frozenset({"tolerations", "envFrom"})
#: Entries that are replaced whole: a `value` beside the `valueFrom` of ours would be neither.
_WHOLE = frozenset({"env", "volumes", "parameters", "params"})
#: Lists and maps of a kind's own parts, which the settings make: no others may be added.
_CLOSED = frozenset({"replicatedJobs", "runtimePatches", "workerGroupSpecs", "pytorchReplicaSpecs"})
_OUR_VOLUMES = frozenset({"dshm", "tmp", "data"})
_OUR_LABELS = ("tidemark.dev/", "app.kubernetes.io/")

Place = tuple[str, ...]


class Template:
    """A user's file, read and checked; `over` lays it over an object."""

    def __init__(self, settings: config.KubernetesLauncher, document: Manifest, *, where: str) -> None:
        """Check everything that can be checked without an object; `where` names the file in errors."""
        self._settings = settings
        self._where = where
        self._document = document
        self._check()

    @classmethod
    def load(cls, settings: config.KubernetesLauncher, *, path: str) -> Template:
        """The file of `settings.template_file`; `path` is where the settings stand in the configuration."""
        file = Path(settings.template_file or "").expanduser()
        try:
            if not file.is_file():
                raise ConfigError(f"{path}.template_file: expected a file, got {str(file)!r}; mend the path")
            if file.stat().st_size > FILE_BYTES:
                raise ConfigError(f"{path}.template_file: expected at most {FILE_BYTES} bytes, got {file.stat().st_size}; "
                                  "put data elsewhere")
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}.template_file: cannot read {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}; "
                              "mend it") from None
        return cls(settings, read_mapping(text, str(file), f"a part of a {settings.kind}, such as `spec:`"), where=str(file))

    def over(self, manifest: Manifest) -> Manifest:
        """`manifest` with the user's parts, every container under our security settings; ConfigError where forms differ."""
        merged = self._merged(manifest, {key: self._document[key] for key in ("metadata", "spec") if key in self._document},
                              ())
        for place in KINDS[self._settings.kind].pods:
            for spec in _at(merged, place):
                self._harden(spec)
        assert isinstance(merged, dict)
        return merged

    def _check(self) -> None:
        kind = self._settings.kind
        self._refuse_unknown(self._document, forms.OBJECT, ())
        for key, value in (("apiVersion", KINDS[kind].resource.api_version), ("kind", kind)):
            if self._document.get(key, value) != value:
                raise self._error((key,), value, self._document[key], "remove it, or set retrain.launcher.kind")
        self._refuse_null(self._document, ())
        metadata = self._map(self._document, "metadata", ())
        self._refuse_unknown(metadata, forms.METADATA, ("metadata",))
        self._check_labels(self._document, ())
        spec = self._map(self._document, "spec", ())
        self._refuse_unknown(spec, forms.SPECS[kind], ("spec",))
        for place, setting in forms.OWNED[kind].items():
            for found in _paths(self._document, place):
                raise self._error(found, "nothing", _value(self._document, found), setting)
        for place in KINDS[kind].pods:
            for found in _paths(self._document, place):
                self._check_pod(_value(self._document, found), found)
        self._check_parameters(spec)

    def _check_labels(self, value: Any, place: Place) -> None:
        """Labels and annotations, of the object and of whatever is made from it."""
        for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            if key in ("labels", "annotations") and isinstance(item, dict):
                for name, text in item.items():
                    self._check_label(name, text, (*place, key, name))
            else:
                self._check_labels(item, (*place, str(key)))

    def _check_label(self, name: str, value: Any, place: Place) -> None:
        if name.startswith(_OUR_LABELS):
            raise self._error(place, "a name of yours", value, "tidemark sets it")
        if name == pod.QUEUE_LABEL:
            raise self._error(place, "nothing", value, "set retrain.launcher.queue")
        self._check_text(value, place)

    def _check_text(self, value: Any, place: Place, *, is_secret: bool = False) -> None:
        """What Kubernetes wants as a text, and YAML reads as a number or a truth value; a secret is not repeated."""
        if not isinstance(value, str):
            raise self._error(place, "a text", type(value).__name__ if is_secret else value, "write it in quotes")

    def _check_pod(self, spec: Any, place: Place) -> None:
        """One pod specification of the file."""
        if not isinstance(spec, dict):
            raise self._error(place, "a mapping", spec, "write a pod's specification")
        patched = self._settings.kind == "TrainJob"
        self._refuse_unknown(spec, forms.PATCHED_POD if patched else forms.POD, place)
        for name, mend in forms.OWNED_OF_POD.items():
            if name in spec:
                raise self._error((*place, name), "nothing", spec[name], mend)
        self._check_security(self._map(spec, "securityContext", place), (*place, "securityContext"))
        for name, value in self._map(spec, "nodeSelector", place).items():
            self._check_text(value, (*place, "nodeSelector", name))
        for index, volume in enumerate(spec.get("volumes") or ()):
            here = (*place, "volumes", str(index))
            if not isinstance(volume, dict):
                raise self._error(here, "a mapping", volume, "write a volume with a name")
            if volume.get("name") in _OUR_VOLUMES:
                raise self._error((*here, "name"), "a name of yours", volume["name"],
                                  "the volumes dshm, tmp and data are set by shared_memory and volume_claim")
            if "hostPath" in volume:
                raise self._error((*here, "hostPath"), "nothing", "a path of the node", "the security settings forbid it")
        for part in ("containers", "initContainers"):
            for index, container in enumerate(spec.get(part) or ()):
                here = (*place, part, str(index))
                if not isinstance(container, dict):
                    raise self._error(here, "a mapping", container, "write a container with a name")
                self._check_container(container, here, patched=patched,
                                      is_ours=part == "containers" and container.get("name") in forms.OUR_CONTAINERS)

    def _check_container(self, container: Manifest, place: Place, *, is_ours: bool, patched: bool) -> None:
        self._refuse_unknown(container, forms.PATCHED_CONTAINER if patched else forms.CONTAINER, place)
        for name, mend in (forms.OWNED_OF_CONTAINER if is_ours else {}).items():
            if name in container:
                raise self._error((*place, name), "nothing", container[name], mend)
        if not is_ours and not patched and not container.get("image"):
            raise self._error((*place, "image"), "the image of a further container", container.get("image"),
                              f"add it; to change ours, name it {_ours(self._settings.kind)}")
        self._check_security(self._map(container, "securityContext", place), (*place, "securityContext"))
        if is_ours:
            limits = {"cpu": "cpu", "memory": "memory", self._settings.gpu_resource: "gpus"}
            resources = self._map(container, "resources", place)
            for part in ("requests", "limits"):
                for name in self._map(resources, part, (*place, "resources")):
                    if name in limits and (part, name) != ("limits", "cpu"):
                        raise self._error((*place, "resources", part, name), "nothing", resources[part][name],
                                          f"set retrain.launcher.{limits[name]}")
        for index, variable in enumerate(container.get("env") or ()):
            told = variable.get("name") if isinstance(variable, dict) else None
            if isinstance(told, str) and told.startswith("TIDEMARK_"):
                raise self._error((*place, "env", str(index), "name"), "a name of yours", told, "tidemark sets it")
            if isinstance(variable, dict) and "value" in variable:
                self._check_text(variable["value"], (*place, "env", str(index), "value"), is_secret=True)
        for index, mount in enumerate(container.get("volumeMounts") or ()):
            at = mount.get("mountPath") if isinstance(mount, dict) else None
            if is_ours and isinstance(at, str) and at.rstrip("/") in {"/dev/shm", "/tmp", "/dev", ""}:
                raise self._error((*place, "volumeMounts", str(index), "mountPath"), "another path", at,
                                  "tidemark mounts shared memory and /tmp itself")

    def _check_security(self, context: Manifest, place: Place) -> None:
        """A security context may add (a user, a group), not weaken."""
        for name, value in context.items():
            if name not in forms.SECURITY_MAY:
                if name not in forms.SECURITY_OURS:
                    raise self._error((*place, name), f"one of {', '.join(sorted(forms.SECURITY_MAY))}", value, "remove it")
                raise self._error((*place, name), "nothing", value, "the security settings are tidemark's, and stay restricted")
            if name == "runAsUser" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise self._error((*place, name), "a user that is not root", value, "give its number")

    def _check_parameters(self, spec: Manifest) -> None:
        """What a template is told: names of the contract are ours."""
        places = {"Workflow": ("spec", "arguments", "parameters", "*"), "PipelineRun": ("spec", "params", "*")}
        for found in _paths(self._document, places.get(self._settings.kind, ("spec", "params", "*"))):
            entry = _value(self._document, found)
            name = entry.get("name") if isinstance(entry, dict) else None
            if isinstance(name, str) and name.startswith("TIDEMARK_"):
                raise self._error((*found, "name"), "a name of yours", name, "tidemark sets it")
            if isinstance(entry, dict) and isinstance(entry.get("value"), bool | int | float):
                self._check_text(entry["value"], (*found, "value"), is_secret=True)

    def _refuse_unknown(self, value: Manifest, form: Mapping[str, str], place: Place) -> None:
        """Keys that the form does not have, and values of another shape than it says."""
        for key, item in value.items():
            if key not in form:
                near = difflib.get_close_matches(key, form, n=1)
                raise self._error((*place, key), "a key that Kubernetes knows", None,
                                  f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(form))}")
            name, wanted = forms.SHAPES[form[key]]
            if not isinstance(item, wanted) or (isinstance(item, bool) and bool not in wanted):
                raise self._error((*place, key), name, item, "mend it")

    def _refuse_null(self, value: Any, place: Place) -> None:
        if value is None:
            raise self._error(place, "a value", value, "null removes nothing; leave the key out")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            self._refuse_null(item, (*place, str(key)))

    def _map(self, of: Manifest, key: str, place: Place) -> Manifest:
        value = of.get(key, {})
        if not isinstance(value, dict):
            raise self._error((*place, key), "a mapping", value, "mend it")
        return value

    def _merged(self, ours: Any, theirs: Any, place: Place) -> Any:
        """`theirs` over `ours`; what stands at `place` must have the same shape in both."""
        name = place[-1] if place else ""
        if isinstance(ours, dict) and isinstance(theirs, dict):
            if name in _CLOSED and (new := [key for key in theirs if key not in ours]):
                raise self._error((*place, new[0]), f"one of {', '.join(ours)}", new[0], "the settings make these parts")
            return {key: copy.deepcopy(ours[key]) if key not in theirs
                    else self._merged(ours[key], theirs[key], (*place, key)) if key in ours
                    else self._new(theirs[key], (*place, key)) for key in [*ours, *(k for k in theirs if k not in ours)]}
        if isinstance(ours, list) and isinstance(theirs, list):
            if name in _NAMED:
                return self._merged_entries(ours, theirs, place)
            return [*copy.deepcopy(ours), *copy.deepcopy(theirs)] if name in _ADDED else copy.deepcopy(theirs)
        if isinstance(ours, dict | list) or isinstance(theirs, dict | list):
            raise self._error(place, _shape(ours), theirs, "mend it")
        return theirs

    def _merged_entries(self, ours: Sequence[Any], theirs: Sequence[Any], place: Place) -> list[Any]:
        """Entries by name: ours first, in their order, then the new ones."""
        key = _NAMED[place[-1]]
        merged = {entry[key]: copy.deepcopy(entry) for entry in ours}
        for index, entry in enumerate(self._new(list(theirs), place)):
            name, here = entry[key], (*place, str(index))
            if name not in merged and place[-1] in _CLOSED:
                raise self._error((*here, key), f"one of {', '.join(merged)}", name, "the settings make these parts")
            merged[name] = entry if name not in merged or place[-1] in _WHOLE else self._merged(merged[name], entry, here)
        return list(merged.values())

    def _new(self, theirs: Any, place: Place) -> Any:
        """A part that ours does not have: as it is, its named lists with a name each, once."""
        if isinstance(theirs, list) and place[-1] in _NAMED:
            key, seen = _NAMED[place[-1]], set()
            for index, entry in enumerate(theirs):
                name = entry.get(key) if isinstance(entry, dict) else None
                if not isinstance(name, str) or not name:
                    raise self._error((*place, str(index)), f"an entry with {key}", entry, f"give it a {key}")
                if name in seen:
                    raise self._error((*place, str(index), key), "each name once", name, "remove one")
                seen.add(name)
        for key_, item in theirs.items() if isinstance(theirs, dict) else enumerate(theirs) if isinstance(theirs, list) else ():
            self._new(item, (*place, str(key_)))
        return copy.deepcopy(theirs)

    def _harden(self, spec: Manifest) -> None:
        """Every container of a pod under the security settings of ours."""
        for part in ("containers", "initContainers"):
            for container in spec.get(part) or ():
                container["securityContext"] = {**container.get("securityContext", {}), **copy.deepcopy(
                    dict(pod.CONTAINER_SECURITY))}

    def _error(self, place: Place, expected: str, got: Any, mend: str) -> ConfigError:
        path = "".join(f"[{key}]" if key.isdigit() else f".{key}" for key in place).lstrip(".")
        told = "" if got is None and expected.startswith("a key") else f", got {_shown(got)}"
        return ConfigError(f"{self._where}: {path}: expected {expected}{told}; {mend}")


def _ours(kind: str) -> str:
    return {"PyTorchJob": "pytorch", "TrainJob": "node"}.get(kind, pod.CONTAINER)


def _shape(value: Any) -> str:
    return "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a single value"


def _shown(value: Any) -> str:
    """A value in an error: its shape where it is large, so that no secret in it is repeated."""
    return _shape(value) if isinstance(value, dict | list) else "none" if value is None else repr(value)[:60]


def _paths(value: Any, place: Sequence[str]) -> list[Place]:
    """Every path of `value` that fits `place`, in which `*` is any key or index; a list or map on the way is entered."""
    if not place:
        return [()]
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if place[0] in {"*", key}]
    elif isinstance(value, list) and place[0] == "*":
        items = [(str(index), item) for index, item in enumerate(value)]
    return [(key, *rest) for key, item in items for rest in _paths(item, place[1:])]


def _value(value: Any, place: Place) -> Any:
    for key in place:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def _at(value: Any, place: Sequence[str]) -> list[Manifest]:
    """The maps that stand at the paths that fit `place`."""
    return [found for path in _paths(value, place) if isinstance(found := _value(value, path), dict)]
