"""The forms of Kubernetes objects, as far as a user's file may change them: names of fields and their shapes. Pure data.

Of the kinds' own specs, of pods and of containers, at the versions that the tests apply (Kubernetes 1.36, Kubeflow Trainer
2.3, Training Operator 1.9, JobSet 0.12, KubeRay 1.6, Argo Workflows 3.7, Tekton Pipelines 1.6). A field that came later is
refused until it is added here; what lies deeper is the API server's to check. `OWNED` are fields that tidemark or one of
its settings decides, with what to do instead. Neighbour: `kubernetes_template`, which reads all this.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Letter -> what it is called in an error, and the Python types that YAML gives for it.
SHAPES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "m": ("a mapping", (dict,)), "l": ("a list", (list,)), "s": ("a text", (str,)), "i": ("a whole number", (int,)),
    "b": ("true or false", (bool,)),
}


def _form(text: str) -> Mapping[str, str]:
    """`name:shape name:shape` as a mapping."""
    return {name: shape for name, _, shape in (each.partition(":") for each in text.split())}


OBJECT = _form("apiVersion:s kind:s metadata:m spec:m")
METADATA = _form("labels:m annotations:m")
POD = _form("""
    activeDeadlineSeconds:i affinity:m automountServiceAccountToken:b containers:l dnsConfig:m dnsPolicy:s
    enableServiceLinks:b hostAliases:l hostIPC:b hostNetwork:b hostPID:b hostUsers:b hostname:s hostnameOverride:s
    imagePullSecrets:l initContainers:l nodeName:s nodeSelector:m os:m overhead:m preemptionPolicy:s priority:i
    priorityClassName:s readinessGates:l resourceClaims:l resources:m restartPolicy:s runtimeClassName:s schedulerName:s
    schedulingGates:l schedulingGroup:m securityContext:m serviceAccount:s serviceAccountName:s setHostnameAsFQDN:b
    shareProcessNamespace:b subdomain:s terminationGracePeriodSeconds:i tolerations:l topologySpreadConstraints:l volumes:l
    ephemeralContainers:l""")
CONTAINER = _form("""
    args:l command:l env:l envFrom:l image:s imagePullPolicy:s lifecycle:m livenessProbe:m name:s ports:l readinessProbe:m
    resizePolicy:l resources:m restartPolicy:s restartPolicyRules:l securityContext:m startupProbe:m stdin:b stdinOnce:b
    terminationMessagePath:s terminationMessagePolicy:s tty:b volumeDevices:l volumeMounts:l workingDir:s""")
#: What a TrainJob's patch can reach of a pod and of a container.
PATCHED_POD = _form("""
    affinity:m containers:l imagePullSecrets:l initContainers:l nodeSelector:m schedulingGates:l securityContext:m
    serviceAccountName:s terminationGracePeriodSeconds:i tolerations:l volumes:l""")
PATCHED_CONTAINER = _form("env:l name:s securityContext:m volumeMounts:l")
SPECS: Mapping[str, Mapping[str, str]] = {
    "Job": _form("""
        activeDeadlineSeconds:i backoffLimit:i backoffLimitPerIndex:i completionMode:s completions:i managedBy:s
        manualSelector:b maxFailedIndexes:i parallelism:i podFailurePolicy:m podReplacementPolicy:s selector:m
        successPolicy:m suspend:b template:m ttlSecondsAfterFinished:i"""),
    "TrainJob": _form("""
        activeDeadlineSeconds:i initializer:m managedBy:s runtimePatches:l runtimeRef:m suspend:b trainer:m"""),
    "PyTorchJob": _form("elasticPolicy:m nprocPerNode:s pytorchReplicaSpecs:m runPolicy:m"),
    "JobSet": _form("""
        coordinator:m failurePolicy:m managedBy:s network:m replicatedJobs:l startupPolicy:m successPolicy:m suspend:b
        ttlSecondsAfterFinished:i volumeClaimPolicies:l"""),
    "RayJob": _form("""
        activeDeadlineSeconds:i backoffLimit:i clusterSelector:m deletionStrategy:m entrypoint:s entrypointNumCpus:i
        entrypointNumGpus:i entrypointResources:s jobId:s managedBy:s metadata:m preRunningDeadlineSeconds:i
        rayClusterSpec:m runtimeEnvYAML:s shutdownAfterJobFinishes:b submissionMode:s submitterConfig:m
        submitterPodTemplate:m suspend:b ttlSecondsAfterFinished:i"""),
    "Workflow": _form("""
        activeDeadlineSeconds:i affinity:m archiveLogs:b arguments:m artifactGC:m artifactRepositoryRef:m
        automountServiceAccountToken:b dnsConfig:m dnsPolicy:s entrypoint:s executor:m hooks:m hostAliases:l hostNetwork:b
        imagePullSecrets:l metrics:m nodeSelector:m onExit:s parallelism:i podDisruptionBudget:m podGC:m podMetadata:m
        podPriorityClassName:s podSpecPatch:s priority:i retryStrategy:m schedulerName:s securityContext:m
        serviceAccountName:s shutdown:s suspend:b synchronization:m templateDefaults:m templates:l tolerations:l
        ttlStrategy:m volumeClaimGC:m volumeClaimTemplates:l volumes:l workflowMetadata:m workflowTemplateRef:m"""),
    "PipelineRun": _form("""
        managedBy:s params:l pipelineRef:m pipelineSpec:m status:s taskRunSpecs:l taskRunTemplate:m timeouts:m
        workspaces:l"""),
}
#: How the container of ours is called by the kinds.
OUR_CONTAINERS = frozenset({"trainer", "pytorch", "node"})

_QUEUE, _NODES = "set retrain.launcher.queue", "set retrain.launcher.nodes"
_DEADLINE, _KEEP = "set retrain.launcher.deadline_hours and queue_hours", "set retrain.launcher.keep_hours"
_RETRY, _TEMPLATE = "set retrain.launcher.backoff_limit", "set retrain.launcher.template"
_ACCOUNT, _SECURITY = "set retrain.launcher.service_account", "the security settings are tidemark's, and stay restricted"
_KIND = "tidemark sets it for this kind"
_CONTROLLER = "its controller would not follow the object any more"


def _owned(**fields: str) -> dict[tuple[str, ...], str]:
    """Fields of `spec`, a double underscore for a step down and `any` for any key."""
    return {("spec", *("*" if step == "any" else step for step in name.split("__"))): mend
            for name, mend in fields.items()}


#: kind -> place -> what to do instead.
OWNED: Mapping[str, Mapping[tuple[str, ...], str]] = {
    "Job": _owned(suspend=_QUEUE, completions=_NODES, parallelism=_NODES, completionMode=_NODES,
                  activeDeadlineSeconds=_DEADLINE, ttlSecondsAfterFinished=_KEEP, backoffLimit=_RETRY, managedBy=_CONTROLLER,
                  selector=_KIND, manualSelector=_KIND, podReplacementPolicy=_KIND, template__metadata__name=_KIND),
    "TrainJob": _owned(suspend=_QUEUE, runtimeRef="set retrain.launcher.runtime", activeDeadlineSeconds=_DEADLINE,
                       trainer__image="set retrain.launcher.image", trainer__command="set retrain.launcher.command",
                       trainer__numNodes=_NODES, trainer__numProcPerNode="set retrain.launcher.gpus",
                       trainer__resourcesPerNode="set retrain.launcher.cpu, memory and gpus",
                       trainer__env="set retrain.launcher.environment", managedBy=_CONTROLLER),
    "PyTorchJob": _owned(runPolicy__suspend=_QUEUE, runPolicy__activeDeadlineSeconds=_DEADLINE,
                         runPolicy__ttlSecondsAfterFinished=_KEEP, runPolicy__backoffLimit=_RETRY,
                         runPolicy__managedBy=_CONTROLLER, nprocPerNode="set retrain.launcher.gpus",
                         pytorchReplicaSpecs__any__replicas=_NODES, pytorchReplicaSpecs__any__restartPolicy=_KIND),
    "JobSet": _owned(suspend=_QUEUE, ttlSecondsAfterFinished=_KEEP, failurePolicy=_RETRY, managedBy=_CONTROLLER,
                     network__subdomain=_KIND, replicatedJobs__any__replicas=_NODES, **{
                         f"replicatedJobs__any__template__spec__{name}": mend for name, mend in (
                             ("completions", _NODES), ("parallelism", _NODES), ("completionMode", _NODES),
                             ("activeDeadlineSeconds", _DEADLINE), ("backoffLimit", _RETRY), ("suspend", _QUEUE))}),
    "RayJob": _owned(suspend=_QUEUE, entrypoint="set retrain.launcher.command", activeDeadlineSeconds=_DEADLINE,
                     ttlSecondsAfterFinished=_KEEP, backoffLimit=_KIND, submissionMode=_KIND, shutdownAfterJobFinishes=_KIND,
                     clusterSelector=_KIND, submitterPodTemplate=_KIND, jobId=_KIND, managedBy=_CONTROLLER,
                     rayClusterSpec__workerGroupSpecs__any__replicas=_NODES,
                     rayClusterSpec__workerGroupSpecs__any__minReplicas=_NODES,
                     rayClusterSpec__workerGroupSpecs__any__maxReplicas=_NODES),
    "Workflow": _owned(workflowTemplateRef=_TEMPLATE, activeDeadlineSeconds=_DEADLINE, ttlStrategy=_KEEP,
                       serviceAccountName=_ACCOUNT, suspend=_KIND, shutdown=_KIND, hostNetwork=_SECURITY,
                       podSpecPatch=_SECURITY, securityContext=_SECURITY,
                       templates="the WorkflowTemplate has them"),
    "PipelineRun": _owned(pipelineRef=_TEMPLATE, pipelineSpec=_TEMPLATE, timeouts=_DEADLINE, status=_KIND,
                          taskRunTemplate__serviceAccountName=_ACCOUNT, managedBy=_CONTROLLER,
                          taskRunTemplate__podTemplate__securityContext=_SECURITY,
                          taskRunTemplate__podTemplate__hostNetwork=_SECURITY),
}
OWNED_OF_POD: Mapping[str, str] = {
    "restartPolicy": "the retry policy rests on it; set retrain.launcher.backoff_limit",
    "activeDeadlineSeconds": _DEADLINE, "serviceAccountName": _ACCOUNT, "serviceAccount": _ACCOUNT,
    "automountServiceAccountToken": "the trainer gets no Kubernetes credentials; mount a projected token where it needs one",
    "hostNetwork": _SECURITY, "hostPID": _SECURITY, "hostIPC": _SECURITY, "hostUsers": _SECURITY,
    "subdomain": _NODES, "hostname": _NODES, "hostnameOverride": _NODES, "nodeName": "set retrain.launcher.node_selector",
    "ephemeralContainers": "they are for debugging a pod that runs",
}
OWNED_OF_CONTAINER: Mapping[str, str] = {
    "image": "set retrain.launcher.image", "command": "set retrain.launcher.command",
    "restartPolicy": "the retry policy rests on the pod's",
}
#: Of a security context: what may be added, and what is ours; anything else weakens it.
SECURITY_MAY = frozenset({"runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "supplementalGroups",
                          "supplementalGroupsPolicy", "seLinuxOptions"})
SECURITY_OURS = frozenset({"runAsNonRoot", "seccompProfile", "allowPrivilegeEscalation", "capabilities",
                           "readOnlyRootFilesystem", "privileged", "procMount", "sysctls", "appArmorProfile",
                           "windowsOptions"})
