"""The environment of an Indexed Job's pods, given to real torchrun processes: they find each other and train as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from monitor import config
from monitor.flow import Launch
from monitor.retrain.launchers.kubernetes_job import job_manifest
from tests.conftest import free_port, package

LAUNCH = Launch(id="3f9c2a1b7d4e", model="churn", version="7", episode=1, launcher="kubernetes", state="approved",
                reason="{}", steps=(), data_uri="s3://t/events", output_uri="s3://t/out")
PROGRAM = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(f"rank {dist.get_rank()} of {dist.get_world_size()} sums {int(total)}")
dist.destroy_process_group()
"""


def test_torchrun_forms_one_group_of_all_nodes_from_the_variables_of_the_pods(tmp_path: Path) -> None:
    """Two nodes, `torchrun train.py` without a flag; only the first pod's name is 127.0.0.1 here."""
    package("torch")
    settings = config.KubernetesLauncher(image="x", nodes=2, gpus=1)
    env = job_manifest(settings, LAUNCH)["spec"]["template"]["spec"]["containers"][0]["env"]
    told = {each["name"]: each.get("value") for each in env if each["name"].startswith("PET_")}
    assert set(told) == {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
    (tmp_path / "train.py").write_text(PROGRAM)
    here = told | {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
                   "CUDA_VISIBLE_DEVICES": ""}
    nodes = [subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "train.py"], cwd=tmp_path, text=True,
                              env=os.environ | here | {"PET_NODE_RANK": str(index)}, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT) for index in range(2)]
    try:
        said = [node.communicate(timeout=300)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    lines = sorted(line for text in said for line in text.splitlines() if line.startswith("rank "))
    assert lines == [f"rank {rank} of 2 sums 2" for rank in range(2)]
