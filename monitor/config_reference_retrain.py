"""What every field on retraining is, in which unit, and why its default is what it is: pure data.

The second half of `config_reference`, in the same form: struct -> field -> (unit, text). The module imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

#: struct -> field -> (unit, text)
RETRAIN_FIELDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Retrain": {
        "launcher": ("", "What trains: `type: local` or `type: kubernetes`."),
        "above": ("reference standard deviations", "Movement at which a retraining is worth it; it must surely be "
                                                   "exceeded. 0.3 is a PSI of about 0.1, the usual *moderate*."),
        "roles": ("", "Roles whose columns may start a retraining. All that are watched; leave out `path` if requests are "
                      "rerouted on purpose."),
        "cooldown_hours": ("hours", "Least event time between two launches of a model. 24, so that a change that unfolds "
                                    "over hours is learned once, whole."),
        "max_per_week": ("launches", "Most launches of a model in 7 days; 0 allows none. 2 bounds what a mistake in the "
                                     "configuration can cost in GPU hours."),
        "approval": ("", "Whether a launch waits for a person (`tidemark triggers approve`, which needs "
                         "`service.token_file`). Automatic, because the challenger must win on held-back events before it "
                         "is promoted."),
        "collect_events": ("events", "Labelled events to collect since the alarm began before the launch starts. 1,000, so "
                                     "that there is something of the new world to learn from and to compare on."),
        "capture_events": ("events", "Events that are kept for training, the newest ones. 200,000 train most tabular models "
                                     "and bound the disk that is used."),
        "capture_uri": ("", "Folder or `s3://bucket/prefix` that they are kept in, and that the trainer reads."),
        "metric": ("", "What champion and challenger are compared by: `accuracy`, or `mean_absolute_error` for numbers."),
        "holdout_events_min": ("events", "Fewer held-back events give no verdict. With 200, and models that disagree on a "
                                         "fifth of them, a difference of accuracies is known to about 6 points."),
        "promote": ("", "How a better challenger reaches production; without it a verdict is reported and nothing changes."),
    },
    "LocalLauncher": {
        "command": ("", "The trainer's command and arguments; what it is told stands in its environment."),
        "deadline_hours": ("hours", "The trainer is ended after so long. 6 holds an overnight training and no forgotten one."),
        "environment": ("", "Further environment variables of the trainer."),
    },
    "KubernetesLauncher": {
        "image": ("", "Image that keeps the trainer's contract."),
        "namespace": ("", "Namespace of the Job."),
        "kind": ("", "Kind of the object that is created."),
        "command": ("", "Command and arguments; empty for the image's own."),
        "gpus": ("GPUs", "GPUs of the one pod; 0 trains on the CPU."),
        "gpu_resource": ("", "Resource name of a GPU, as the cluster's device plugin calls it."),
        "cpu": ("", "CPU that is asked for, as Kubernetes writes it. 2, so that data loading keeps one GPU busy."),
        "memory": ("", "Memory that is asked for, and the limit, as Kubernetes writes it."),
        "shared_memory": ("", "Size of `/dev/shm`. 8Gi, since the 64 MB that containers get by default make data-loader "
                              "workers fail or crawl; it counts against `memory`."),
        "deadline_hours": ("hours", "Kubernetes ends the Job after so long. 6 holds an overnight training and no forgotten "
                                    "one."),
        "backoff_limit": ("", "Times that a failed pod is tried again. 1: a lost node is worth a second try, a wrong program "
                              "is not worth a third."),
        "keep_hours": ("hours", "A finished Job and its logs stay so long. A day, so that a person can still look."),
        "service_account": ("", "ServiceAccount of the pod; none for the namespace's default. Its token is not mounted."),
        "image_pull_secret": ("", "Secret to pull the image with."),
        "environment_secret": ("", "Secret whose keys become environment variables: credentials of the data store."),
        "volume_claim": ("", "PersistentVolumeClaim that holds `capture_uri`, mounted at the same path."),
        "node_selector": ("", "Labels that a node must have."),
        "tolerations": ("", "Taints that the pod tolerates. By default the one that GPU nodes usually carry."),
        "environment": ("", "Further environment variables of the trainer."),
        "kubeconfig": ("", "File to reach the cluster with; none for the pod's own account, then `~/.kube/config`."),
    },
    "FilePromotion": {
        "path": ("", "JSON file that the serving code watches; it is replaced in one step."),
        "settle_seconds": ("seconds", "Time that serving needs to take the new model up everywhere; until then the old "
                                      "reference still judges. 10 holds a watcher that looks every few seconds."),
    },
}
