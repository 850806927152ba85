"""The launchers: back ends that train. One module each, imported when a configuration names it and not before."""

from __future__ import annotations

from monitor.config import AirflowLauncher, KfpLauncher, KubernetesLauncher, LocalLauncher, WebhookLauncher
from monitor.flow import Launch, Launcher

AnyLauncher = LocalLauncher | KubernetesLauncher | AirflowLauncher | KfpLauncher | WebhookLauncher


def launcher_for(config: AnyLauncher, *, capture_uri: str | None = None,
                 path: str = "retrain.launcher") -> Launcher:
    """The launcher that a configuration's `retrain.launcher` names.

    capture_uri : where captured events are written; a Job's volume is mounted there
    path        : where `config` stands in the file, for ConfigError: its client is not installed, a value is wrong
    """
    if isinstance(config, LocalLauncher):
        from monitor.retrain.launchers.local import Local

        return Local(config)
    if isinstance(config, AirflowLauncher):
        from monitor.retrain.launchers.airflow import Airflow

        return Airflow(config, path=path)
    if isinstance(config, KfpLauncher):
        from monitor.retrain.launchers.kfp import KubeflowPipelines

        return KubeflowPipelines(config, path=path)
    if isinstance(config, WebhookLauncher):
        from monitor.retrain.launchers.webhook import Webhook

        return Webhook(config, path=path)
    from monitor.retrain.launchers.kubernetes import KubernetesJobs

    return KubernetesJobs(config, capture_uri=capture_uri, path=path)


def trainer_environment(launch: Launch) -> dict[str, str]:
    """What every trainer is told, whatever starts it: the environment of the trainer's contract."""
    return {
        "TIDEMARK_LAUNCH_ID": launch.id,
        "TIDEMARK_MODEL": launch.model,
        "TIDEMARK_VERSION": launch.version,
        "TIDEMARK_REASON": launch.reason,
        "TIDEMARK_COLUMNS": launch.columns,
        "TIDEMARK_DATA_URI": launch.data_uri,
        "TIDEMARK_OUTPUT_URI": launch.output_uri,
    }
