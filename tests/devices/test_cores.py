"""As many threads as this process may use: its affinity, or what its control group grants, whichever is less."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeclip.devices.machine.cpu import read_cpu, usable_cores
from edgeclip.devices.machine.tree import Tree
from tests.device_trees import write_tree

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({f"{V2}/cpu.max": "max 100000"}, None),
        ({f"{V2}/cpu.max": "150000 100000"}, 1.5),
        ({f"{V2}/cpu.max": "50000"}, None),
        ({f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}, None),
        ({f"{V1}/cpu.cfs_quota_us": "200000", f"{V1}/cpu.cfs_period_us": "100000"}, 2.0),
        # A service sees the whole tree: its own group, and those that it lies in, bound it.
        (
            {
                "proc/self/cgroup": "0::/system.slice/label.service\n",
                f"{V2}/system.slice/label.service/cpu.max": "max 100000",
                f"{V2}/system.slice/cpu.max": "300000 100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n0::/\n",
                f"{V1}/docker/a/cpu.cfs_quota_us": "50000",
                f"{V1}/docker/a/cpu.cfs_period_us": "100000",
                f"{V1}/cpu.cfs_quota_us": "-1",
                f"{V1}/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        # A container of version 1 that sees its own group as the root, and the host's path in proc.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/kubepods/pod/a\n",
                f"{V1}/cpu.cfs_quota_us": "400000",
                f"{V1}/cpu.cfs_period_us": "100000",
            },
            4.0,
        ),
        ({"proc/self/cgroup": "0::/../../other\nnonsense\n", f"{V2}/cpu.max": "200000 100000"}, 2.0),
    ],
)
def test_the_least_quota_of_all_groups_holds(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    tree = Tree(write_tree(tmp_path, files))
    assert read_cpu(tree).quota_cores == quota
    cores = len(os.sched_getaffinity(0))
    assert usable_cores(tree) == (cores if quota is None else max(1, min(cores, int(quota))))


@pytest.fixture
def group() -> Iterator[Path]:
    """A real control group with half a core more than one, of either version."""
    for place, name, granted in (
        (Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us", "150000"),
        (Path("/sys/fs/cgroup"), "cpu.max", "150000 100000"),
    ):
        own = place / "edgeclip-test"
        try:
            own.mkdir()
        except OSError:
            continue
        try:
            if (own / name).exists():
                (own / name).write_text(granted)
                yield own
                return
        finally:
            own.rmdir()
    pytest.skip("no control group that bounds the CPU can be made here")


def test_an_engine_starts_no_more_threads_than_its_group_grants(
    tiny_bundle: Path, group: Path, all_cores: None
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    code = f"""
import os
from pathlib import Path
Path("{group}/cgroup.procs").write_text(str(os.getpid()))
from edgeclip import Bundle
from edgeclip.runtime.engines.base import load_engine
opened = Bundle.open("{tiny_bundle}")
with load_engine("onnxruntime", opened.variant_path("fp32"), opened.manifest.encoder) as engine:
    print(engine.describe())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "1 thread" in done.stdout
