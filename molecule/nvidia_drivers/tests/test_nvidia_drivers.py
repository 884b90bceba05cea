"""A host on which the driver was wanted, and one on which it was not."""

import pytest

testinfra_hosts = ["ssh://gpu1", "ssh://cpu1"]

GPU, CPU = "gpu1", "cpu1"


@pytest.fixture
def name(host):
    return host.check_output("hostname")


@pytest.fixture
def gpu(host, name):
    if name != GPU:
        pytest.skip(f"about {GPU}")
    return host


@pytest.fixture
def cpu(host, name):
    if name != CPU:
        pytest.skip(f"about {CPU}")
    return host


def test_driver_is_built_for_the_kernel_with_headers(gpu):
    status = gpu.check_output("dkms status")
    assert "nvidia-current/" in status
    assert [line for line in status.splitlines() if not line.endswith(": installed")] == []


def test_module_can_be_found_by_its_usual_name(gpu):
    kernel = gpu.check_output("ls /lib/modules").split()[0]
    assert "nvidia" in gpu.check_output(f"modinfo --set-version {kernel} --field filename nvidia-current")


def test_no_package_is_left_half_installed(gpu):
    assert gpu.check_output("dpkg --audit") == ""


@pytest.mark.parametrize("package", ["nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "libnvidia-ml1"])
def test_packages_are_held_together(gpu, package):
    assert package in gpu.check_output("apt-mark showhold").split()


def test_mirror_is_the_hosts_own(gpu):
    addresses = gpu.check_output(
        "apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages'"
    ).splitlines()
    by_component = {}
    for line in addresses:
        uri, component = line.split()
        by_component.setdefault(component, set()).add(uri)
    assert by_component["non-free"] == by_component["main"]


def test_host_without_a_gpu_is_left_alone(cpu):
    assert not cpu.file("/etc/apt/sources.list.d/nvidia-drivers.sources").exists
    assert not cpu.run("dpkg-query --show 'nvidia*' 'linux-headers-*'").stdout
