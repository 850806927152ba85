"""What every field on retraining is, in which unit, and why its default is what it is: pure data.

The second half of `config_reference`, in the same form: struct -> field -> (unit, text). The module imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Of everything that is reached over HTTP.
_SERVER: Mapping[str, tuple[str, str]] = {
    "token_file": ("", "File with a bearer token. It is read at every call, so that it may be renewed."),
    "username": ("", "Name to log in with, beside `password_file`; in place of a token."),
    "password_file": ("", "File with the password."),
    "ca_file": ("", "Certificates of the authority that the server is trusted by; none for those of the system."),
}
#: Of every CloudEvent that is sent.
_EVENT: Mapping[str, tuple[str, str]] = {
    "secret_file": ("", "File with the secret that events are signed with (Standard Webhooks, HMAC-SHA256). None for a receiver "
                        "that does not look at it, such as a JobSink."),
    "source": ("", "`source` of the events: with their id, what a receiver tells them apart by. Give two services two of them; "
                   "without slashes it also fits a JobSink."),
}
#: Of every training that runs elsewhere.
_TRAINING: Mapping[str, tuple[str, str]] = {
    "gpus": ("GPUs", "GPUs that one training takes, for `gpu_hours_per_week`; nothing is asked for with it. 1, so that a budget "
                     "holds before anybody has counted."),
    "deadline_hours": ("hours", "The training is ended after so long; the wait for its turn does not count. 6 holds an overnight "
                                "training and no forgotten one."),
    "queue_hours": ("hours", "A training that has not begun after so long (a paused DAG, no free GPU) is ended. 12: longer than "
                             "a busy working day."),
}

#: struct -> field -> (unit, text)
RETRAIN_FIELDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Retrain": {
        "launcher": ("", "What trains: `type: local` or `type: kubernetes`."),
        "launch_on": ("", "What starts a retraining. `alarm`: a severe alarm by itself, too, since a model should not wait for a "
                          "person. `request`: only who asks for it, a person or an alert that Alertmanager routes here, so that "
                          "its silences and inhibitions hold a retraining back."),
        "above": ("reference standard deviations", "Movement at which a retraining is worth it; it must surely be "
                                                   "exceeded. 0.3 is a PSI of about 0.1, the usual *moderate*."),
        "roles": ("", "Roles whose columns may start a retraining. All that are watched; leave out `path` if requests are "
                      "rerouted on purpose."),
        "persist_panes": ("panes", "Panes in a row for which an alarm must be severe before a launch. 1, since the alarm itself "
                                   "is already certain; more where short disturbances mend themselves."),
        "learning_hours": ("hours", "Event time for which a version must have been judged before it may ask for a retraining. "
                                    "0, since `cooldown_hours` counts from a promotion, too; more where a version that you "
                                    "configure yourself needs time to settle."),
        "cooldown_hours": ("hours", "Least event time between two launches of a model. 24, so that a change that unfolds "
                                    "over hours is learned once, whole."),
        "max_per_week": ("launches", "Most launches of a model in 7 days; 0 allows none. 2 bounds what a mistake in the "
                                     "configuration can cost in GPU hours."),
        "gpu_hours_per_week": ("GPU hours", "Most GPU hours of a model's launches in 7 days: GPUs x hours trained, and x "
                                            "`deadline_hours` while a training has not ended. None, so that `max_per_week` "
                                            "alone bounds it; needs a launcher that says its GPUs."),
        "blackout": ("", "Hours of the week in which nothing is launched, a list of periods. None by default."),
        "useless_max": ("launches", "Launches of a version in a row that failed, timed out, were not better or were rolled back, "
                                    "after which there is no other until a person resets it or a new version comes. 3, since "
                                    "what three trainings could not mend a fourth will not; null never stops."),
        "approval": ("", "Whether a launch waits for a person (`tidemark triggers approve`, which needs "
                         "`service.token_file`). Automatic, because the challenger must win on held-back events before it "
                         "is promoted."),
        "approval_hours": ("hours", "A proposal that nobody answers is refused after so long, whatever the clock is "
                                    "set to meanwhile. 72, so that one of Friday evening is still there on Monday morning."),
        "collect_events": ("events", "Labelled events to collect since the alarm began before the launch starts. 1,000, so "
                                     "that there is something of the new world to learn from and to compare on."),
        "capture_events": ("events", "Events that are kept for training, the newest ones. 200,000 train most tabular models "
                                     "and bound the disk that is used."),
        "capture_uri": ("", "Folder or `s3://bucket/prefix` that they are kept in, and that the trainer reads."),
        "capture_share": ("share of events", "Share of the events that is kept for training, chosen by a hash of the offset. 1, "
                                             "all; less where a day's events are more than a training needs."),
        "capture_days": ("days", "Captured events that are so much older than the newest one go, in whole files. None: "
                                 "`capture_events` alone bounds them. The data of ended launches goes after as many days, "
                                 "or 30."),
        "capture_seconds": ("seconds", "Counted events wait so long at most, in the state file, before they are in a Parquet "
                                       "file. 300 makes few large files; a launch gets those that wait, too."),
        "data_uri": ("", "What the trainer reads in place of captured events, given to it as `TIDEMARK_DATA_URI`; then nothing "
                         "is captured and `collect_events` waits for nothing. None: captured events."),
        "metric": ("", "What champion and challenger are compared by (`docs/judging.md`). Accuracy, which needs nothing but "
                       "labels; for numbers take one of the errors or `r2`, which accuracy cannot compare."),
        "metric_interval": ("", "The interval of the difference. `auto`: for each metric the one that keeps its level best with "
                                "few events; `bootstrap`: a paired bootstrap for all of them, drawn by the launch's id."),
        "positive_label": ("", "The label that `f1`, `roc_auc` and `log_loss` are about. None: of labels 0 and 1, or false and "
                               "true, the second; without it `f1` is the mean over classes."),
        "min_improvement": ("as the metric", "A challenger is better when it surely is by more than this. 0: any improvement "
                                             "that is certain is worth a promotion."),
        "holdout_events_min": ("events", "Fewer held-back events give no verdict. With 200, and models that disagree on a "
                                         "fifth of them, a difference of accuracies is known to about 6 points."),
        "shadow": ("", "A time in which a better challenger answers beside the champion before it is promoted. None: the "
                       "held-back events decide."),
        "promote": ("", "How a better challenger reaches production; without it a verdict is reported and nothing changes."),
        "model_uri": ("", "Where the model of the configured version is. Only `tidemark rollback` needs it, to go back to the "
                          "version that the monitor began with; KServe knows it by itself."),
        "result_uris": ("", "Folders besides the launch's own output in which `result.json` may name files: paths, "
                            "s3://bucket/prefix or https://host/path. Empty: the reference must lie in the output, the model "
                            "there or in any object store or registry. Name your model store here, and a trainer can send "
                            "serving nowhere else."),
    },
    "Shadow": {
        "prediction": ("", "Column of the events in which serving logs the challenger's answers while it is in shadow; it is "
                           "read like a label, and need not be in the reference."),
        "hours": ("hours", "A challenger that is not surely better after so long is refused. 24, so that every hour of a day is "
                           "seen."),
        "events_min": ("events", "Labelled events with both answers before the first look; further looks are at twice, four "
                                 "times ... as many. 500 tells a difference of accuracies of about 4 points."),
    },
    "Blackout": {
        "days": ("", "Days on which a period begins: `mon` to `sun`. All of them by default."),
        "start": ("local time", "`from`: the time of day at which it begins, \"00:00\" to \"24:00\". Midnight by default."),
        "end": ("local time", "`to`: the time of day at which it ends; on the next day, where it is not later than `from`. "
                              "Midnight at the day's end by default."),
        "time_zone": ("", "Whose local time, by its IANA name such as Europe/Zurich. UTC by default, which has no summer time."),
    },
    "AirflowLauncher": {
        **_SERVER,
        "url": ("", "Address of Airflow, without `/api`."),
        "dag": ("", "Id of the DAG. A run gets the trainer's contract as its `conf`."),
        "api": ("", "`v2` for Airflow 3, `v1` for Airflow 2. With a name and a password, v2 gets itself a token from "
                    "`/auth/token`."),
        **_TRAINING,
        "environment": ("", "Further entries of `conf`."),
    },
    "KfpLauncher": {
        **_SERVER,
        "url": ("", "Address of Kubeflow Pipelines, without `/apis`."),
        "pipeline": ("", "Id of the pipeline."),
        "pipeline_version": ("", "Id of its version; none for the latest one."),
        "experiment": ("", "Id of the experiment that runs are filed under; none for the default one."),
        "namespace": ("", "Namespace in which runs are looked for, where Kubeflow serves several users."),
        "service_account": ("", "ServiceAccount that the run's pods use; none for Kubeflow's own."),
        "parameters": ("", "Parameters that the pipeline declares, and what each gets: a variable of the trainer's contract, or "
                           "a fixed text. The launch's id and its output must be among them, because they tell runs apart."),
        **_TRAINING,
    },
    "WebhookLauncher": {
        **_SERVER,
        **_EVENT,
        "url": ("", "Where the event that asks for a training is sent."),
        "status_url": ("", "Asked how a training stands; `{launch_id}` in it is replaced. Without it a training is done when "
                           "`result.json` is there, and a failure shows at the deadline only."),
        "cancel_event": ("", "Whether an event asks to end a training whose time is over. Off for a JobSink, which would start "
                             "another Job for it."),
        **_TRAINING,
        "environment": ("", "Further entries of the event's `environment`."),
    },
    "LocalLauncher": {
        "command": ("", "The trainer's command and arguments; what it is told stands in its environment."),
        "deadline_hours": ("hours", "The trainer is ended after so long. 6 holds an overnight training and no forgotten one."),
        "environment": ("", "Further environment variables of the trainer."),
    },
    "KubernetesLauncher": {
        "image": ("", "Image that keeps the trainer's contract; `Workflow` and `PipelineRun` take it from their template."),
        "namespace": ("", "Namespace that is trained in."),
        "kind": ("", "Kind of the object that is created. `Job` needs nothing but Kubernetes."),
        "command": ("", "Command and arguments; empty for the image's own. A `RayJob` needs one."),
        "gpus": ("GPUs", "GPUs of each pod; 0 trains on the CPU."),
        "nodes": ("pods", "Pods that train together. With several, the command is `torchrun` without its own flags for nodes and "
                          "address: they come by `PET_` variables."),
        "gpu_resource": ("", "Resource name of a GPU, as the cluster's device plugin calls it."),
        "cpu": ("", "CPU that is asked for, as Kubernetes writes it. 2, so that data loading keeps one GPU busy."),
        "memory": ("", "Memory that is asked for, and the limit, as Kubernetes writes it."),
        "shared_memory": ("", "Size of `/dev/shm`. 8Gi, since the 64 MB that containers get by default make data-loader "
                              "workers fail or crawl; it counts against `memory`."),
        "deadline_hours": ("hours", "The training is ended after so long; the wait for its turn does not count. 6 holds an "
                                    "overnight training and no forgotten one."),
        "queue": ("", "Kueue's LocalQueue: the object is created suspended, and Kueue lets it go. None where there is no Kueue."),
        "queue_hours": ("hours", "A training that has not begun after so long (no quota, no free GPU, no image) is ended. 12: "
                                 "what does not start over night does not start, and trains on an old world when it does."),
        "backoff_limit": ("", "Times that a killed pod is tried again. 1: a crash of the GPU's runtime is worth a second try. A "
                              "program that fails is not tried again, and a disruption (drain, preemption) is not counted."),
        "keep_hours": ("hours", "A finished training and its logs stay so long. A day, so that a person can still look."),
        "template": ("", "WorkflowTemplate (kind `Workflow`) or Pipeline (kind `PipelineRun`) of the namespace that is run."),
        "template_file": ("", "YAML that is laid over the object: a part of it in its own form, with more volumes, sidecars, "
                              "affinity. What tidemark answers for, names, labels, the contract's variables and the security "
                              "settings, is refused there. `tidemark manifest` prints the outcome."),
        "runtime": ("", "Training runtime of a `TrainJob`: a ClusterTrainingRuntime, or `TrainingRuntime/NAME` of the namespace. "
                        "By default the one that Kubeflow Trainer brings for PyTorch."),
        "service_account": ("", "ServiceAccount of the pod; none for the namespace's default. Its token is not mounted."),
        "image_pull_secret": ("", "Secret to pull the image with."),
        "environment_secret": ("", "Secret whose keys become environment variables: credentials of the data store."),
        "environment_secret_keys": ("", "Keys of that Secret that are taken; empty for all. A `TrainJob` must name them."),
        "volume_claim": ("", "PersistentVolumeClaim that holds `capture_uri`, mounted at the same path."),
        "node_selector": ("", "Labels that a node must have."),
        "tolerations": ("", "Taints that the pod tolerates. By default the one that GPU nodes usually carry."),
        "environment": ("", "Further environment variables of the trainer."),
        "kubeconfig": ("", "File to reach the cluster with; none for the pod's own account, then `~/.kube/config`."),
    },
    "WebhookPromotion": {
        **_SERVER,
        **_EVENT,
        "url": ("", "Where the event that asks for a deployment is sent."),
        "confirm_url": ("", "Asked until it answers JSON whose `version` is the new one; `{launch_id}` and `{version}` in it are "
                            "replaced. Without it a receiver that takes the event is believed."),
        "confirm_hours": ("hours", "A promotion that is not confirmed after so long is withdrawn. 1, because pulling a large "
                                   "model to many nodes takes minutes."),
        "settle_seconds": ("seconds", "Time that serving needs to take the new model up everywhere; until then the old "
                                      "reference still judges. 60 holds a rolling update of a small service."),
    },
    "KServePromotion": {
        "name": ("", "Name of the InferenceService."),
        "namespace": ("", "Namespace of the InferenceService."),
        "canary_percent": ("percent", "Share of the traffic that the new model gets first; none gives it all at once. Needs "
                                      "KServe on Knative."),
        "canary_hours": ("hours", "The canary must be Ready for so long before it gets all the traffic. 24, so that every hour "
                                  "of a day is seen."),
        "ready_minutes": ("minutes", "A new model that is not Ready after so long is taken back. 30 holds the download of a "
                                     "large model and the start of a GPU node."),
        "settle_seconds": ("seconds", "Time after Ready in which answers of the old model may still come; until then the old "
                                      "reference judges. 60 holds the end of a rolling update."),
        "kubeconfig": ("", "File to reach the cluster with; none for the pod's own account, then `~/.kube/config`."),
    },
    "FilePromotion": {
        "path": ("", "JSON file that the serving code watches; it is replaced in one step."),
        "settle_seconds": ("seconds", "Time that serving needs to take the new model up everywhere; until then the old "
                                      "reference still judges. 10 holds a watcher that looks every few seconds."),
    },
}
