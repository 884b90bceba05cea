"""A host with the distribution's driver, one with packages as from NVIDIA's repository, and one on which no driver was wanted."""

import pytest

testinfra_hosts = ["ssh://gpu1", "ssh://gpu2", "ssh://cpu1"]

GPU, OTHER, CPU = "gpu1", "gpu2", "cpu1"


@pytest.fixture
def name(host):
    return host.check_output("hostname")


@pytest.fixture
def gpu(host, name):
    if name != GPU:
        pytest.skip(f"about {GPU}")
    return host


@pytest.fixture
def other(host, name):
    """The second host with a GPU. Every test runs for every host, and tests of this host are skipped for the others."""
    if name != OTHER:
        pytest.skip(f"about {OTHER}")
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
    assert not cpu.file("/etc/modprobe.d/nvidia-drivers.conf").exists
    assert not cpu.file("/etc/systemd/system/nvidia-drivers-metrics.timer").exists
    assert not cpu.run("dpkg-query --show 'nvidia*' 'linux-headers-*'").stdout
    assert not cpu.file("/opt/amazon").exists


def test_host_without_an_adapter_has_no_software_for_it(gpu):
    assert not gpu.file("/opt/amazon").exists


def test_software_of_adapters_is_installed_once_and_again_only_when_it_does_not_work(other):
    """By the first run, and after an older version had stopped working; a working older one was left alone."""
    runs = other.file("/srv/fakes/efa-installed").content_string.splitlines()
    assert runs == ["/var/cache/nvidia_drivers_efa/aws-efa-installer --yes --skip-mpi"] * 2
    assert other.file("/opt/amazon/efa_installed_packages").content_string == "# EFA installer version: 1.50.0\n"
    assert not other.file("/var/cache/nvidia_drivers_efa").exists


def test_branch_is_the_one_that_was_chosen_last(other):
    """After 580, and a version of 590 whose module does not build."""
    assert other.package("nvidia-driver-cuda").version == "590.48.01-1"
    assert other.check_output("dpkg --audit") == ""
    status = other.check_output("dkms status").splitlines()
    assert [line for line in status if line.startswith("nvidia/590.48.01, ") and line.endswith(": installed")]
    assert "590.44.01" not in "".join(status)


def test_packages_of_another_branch_are_not_offered(other):
    assert "Candidate: 590.48.01-1" in other.check_output("apt-cache policy nvidia-driver-cuda")


@pytest.mark.parametrize(
    "package", ["nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "nvidia-fabricmanager"]
)
def test_packages_of_nvidia_are_held_together(other, package):
    assert package in other.check_output("apt-mark showhold").split()


@pytest.mark.parametrize("unit", ["nvidia-persistenced", "nvidia-fabricmanager", "nvidia-dcgm", "nvidia-dcgm-exporter"])
def test_daemons_run(other, unit):
    service = other.service(unit)
    assert (service.is_enabled, service.is_running) == (True, True)


def test_dcgm_exporter_listens_on_one_address(other):
    shown = other.check_output("systemctl show --property Environment nvidia-dcgm-exporter")
    assert shown == "Environment=DCGM_EXPORTER_LISTEN=127.0.0.1:9400"


def test_errors_are_written_for_prometheus(other):
    other.check_output("systemctl start nvidia-drivers-metrics.service")
    written = other.file("/var/lib/prometheus/node-exporter/nvidia_drivers.prom").content_string
    assert 'nvidia_driver_info{version="590.48.01"} 1' in written
    assert 'nvidia_gpu_ecc_errors_total{pci="0000:00:1e",kind="corrected"} 2' in written
    assert other.service("nvidia-drivers-metrics.timer").is_running


def test_nouveau_does_not_load(other):
    assert "blacklist nouveau" in other.check_output("modprobe --showconfig").splitlines()
