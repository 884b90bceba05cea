"""Make a repository that looks like NVIDIA's for Debian 13, whose packages have a few lines each, fakes of what a GPU shows, and an installer like AWS's.

Packages depend on each other, build their module with DKMS and bring units as NVIDIA's do. Version 590.44.01 has a mistake that real drivers
had on newer kernels, so it does not build.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

VERSIONS = ["580.95.05", "590.44.01", "590.48.01"]
BROKEN = "590.44.01"
PACKAGES: dict[str, list[str]] = {
    "libcuda1": [],
    "nvidia-modprobe": [],
    "nvidia-kernel-open-dkms": ["dkms"],
    "nvidia-persistenced": ["libcuda1 (= {version}-1)"],
    "nvidia-driver-cuda": ["libcuda1 (= {version}-1)", "nvidia-kernel-open-dkms (= {version}-1)"],
    "nvidia-fabricmanager{suffix}": ["nvidia-driver-cuda (= {version}-1)"],
}
ALONE = {"datacenter-gpu-manager-4-cuda13": [], "datacenter-gpu-manager-exporter": ["datacenter-gpu-manager-4-cuda13"]}
UNITS = {
    "nvidia-persistenced": "nvidia-persistenced",
    "nvidia-fabricmanager{suffix}": "nvidia-fabricmanager",
    "datacenter-gpu-manager-4-cuda13": "nvidia-dcgm",
    "datacenter-gpu-manager-exporter": "nvidia-dcgm-exporter",
}
UNIT = "[Unit]\nDescription=Looks like {name}\n[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
# A call with too few arguments, as after a change of the kernel's interfaces.
MODULE = """#include <linux/module.h>
#include <linux/pci.h>
MODULE_LICENSE("GPL");
MODULE_VERSION("{version}");
{mistake}
"""
MISTAKE = "int nvidia_resize(struct pci_dev *device);\nint nvidia_resize(struct pci_dev *device) { return pci_enable_device(); }"
DKMS = """PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/updates/dkms"
AUTOINSTALL="yes"
"""
# What nvidia-smi says and how it ends are files, which tests change.
SMI = """#!/bin/sh
[ -e {fakes}/smi ] || {{ echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."; exit 9; }}
case "$*" in
*--query-compute-apps*) ;;
*--query-gpu=driver_version,pci*) echo "$(cat {fakes}/version), 00000000:00:1E.0, 2, 0" ;;
*--query-gpu*) echo "$(cat {fakes}/version), Tesla T4" ;;
*) cat {fakes}/smi; [ ! -e {fakes}/smi-fails ] ;;
esac
"""
CUDA = """#include <stdint.h>
#include <stdlib.h>
#include <string.h>
int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Tesla T4", size); return device; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = malloc(1); return device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
int cuCtxSetCurrent(void *context) { return context == 0; }
int cuMemAlloc_v2(uint64_t *memory, size_t size) { *memory = (uint64_t)malloc(size); return *memory ? 0 : 2; }
int cuMemsetD8_v2(uint64_t memory, unsigned char byte, size_t size) { memset((void *)memory, byte, size); return 0; }
int cuMemcpyDtoH_v2(void *copy, uint64_t memory, size_t size) { memcpy(copy, (void *)memory, size); return 0; }
int cuMemFree_v2(uint64_t memory) { free((void *)memory); return 0; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_OF_A_FAKE"; return code == 0; }
"""

# What AWS's installer leaves, as far as the role sees it. libfabric finds no adapter while the file `efa-asleep` is there.
EFA_VERSION = "1.50.0"
EFA_INSTALLER = """#!/bin/sh -e
echo "$PWD $*" >> {fakes}/efa-installed
mkdir -p /opt/amazon/efa/bin /opt/amazon/ofi-nccl/lib
touch /opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so
cat > /opt/amazon/efa/bin/fi_info <<'END'
#!/bin/sh
[ ! -e {fakes}/efa-asleep ] || {{ echo "fi_getinfo: -61 (No data available)" >&2; exit 1; }}
printf 'provider: efa\\n    fabric: efa\\n    domain: rdmap0s31-rdm\\n    type: FI_EP_RDM\\n'
END
chmod 755 /opt/amazon/efa/bin/fi_info
echo "# EFA installer version: {version}" > /opt/amazon/efa_installed_packages
"""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def run(*command: str | Path, **options: object) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)


def build(work: Path, repository: Path, fakes: Path, package: str, version: str, needs: list[str]) -> None:
    """Build one version of a package."""
    suffix = "-580" if version.startswith("580.") else ""
    name = package.format(suffix=suffix)
    root = work / f"{name}_{version}"
    control = {
        "Package": name,
        "Version": f"{version}-1",
        "Architecture": "amd64",
        "Maintainer": "lab <lab@example.com>",
    }
    if needs:
        control["Depends"] = ", ".join(need.format(version=version) for need in needs)
    if package.endswith("{suffix}") and not suffix:
        control |= {"Conflicts": "nvidia-fabricmanager-580", "Replaces": "nvidia-fabricmanager-580"}
    control["Description"] = f"looks like {name}"
    write(root / "DEBIAN" / "control", "".join(f"{key}: {value}\n" for key, value in control.items()))
    if package in UNITS:
        unit = UNITS[package]
        write(root / "usr/lib/systemd/system" / f"{unit}.service", UNIT.format(name=unit))
    if package == "nvidia-driver-cuda":
        write(root / "usr/bin/nvidia-smi", SMI.format(fakes=fakes), 0o755)
    if package == "libcuda1":
        library = root / "usr/lib/x86_64-linux-gnu/libcuda.so.1"
        library.parent.mkdir(parents=True)
        run("gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library, input=CUDA.encode())
    if package == "nvidia-kernel-open-dkms":
        source = root / "usr/src" / f"nvidia-{version}"
        mistake = MISTAKE if version == BROKEN else ""
        write(source / "nvidia.c", MODULE.format(version=version, mistake=mistake))
        write(source / "Makefile", "obj-m := nvidia.o\n")
        write(source / "dkms.conf", DKMS.format(version=version))
        postinst = f"#!/bin/sh\nset -e\nexec /usr/lib/dkms/common.postinst nvidia {version} /usr/share/nvidia '' ''\n"
        write(root / "DEBIAN/postinst", postinst, 0o755)
        write(root / "DEBIAN/prerm", f"#!/bin/sh\ndkms remove -m nvidia -v {version} --all || true\n", 0o755)
    run("dpkg-deb", "--root-owner-group", "--build", root, repository / f"{name}_{version}-1_amd64.deb")


def publish(repository: Path, home: Path) -> str:
    """Index the packages and sign the index; return the key's fingerprint."""
    gpg = ["gpg", "--batch", "--homedir", home]
    home.mkdir(mode=0o700)
    run(*gpg, "--passphrase", "", "--quick-generate-key", "lab <lab@example.com>", "rsa3072", "sign", "never")
    with (repository / "Packages").open("wb") as packages:
        run("apt-ftparchive", "packages", ".", cwd=repository, stdout=packages)
    with (repository / "Release").open("wb") as release:
        run("apt-ftparchive", "release", ".", cwd=repository, stdout=release)
    run(*gpg, "--clearsign", "--output", repository / "InRelease", repository / "Release")
    run(*gpg, "--armor", "--export", "--output", repository / "lab.pub")
    listed = subprocess.run(
        [*map(str, gpg), "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
    )
    return next(line.split(":")[9] for line in listed.stdout.splitlines() if line.startswith("fpr:"))


def make_efa_installer(directory: Path, fakes: Path, work: Path) -> str:
    """Pack and sign an installer, with the key that `publish` made; return the archive's SHA-256."""
    root, name = work / "aws-efa-installer", f"aws-efa-installer-{EFA_VERSION}.tar.gz"
    write(root / "efa_installer.sh", EFA_INSTALLER.format(fakes=fakes, version=EFA_VERSION), 0o755)
    directory.mkdir()
    run("tar", "--create", "--gzip", "--file", directory / name, "--directory", work, root.name)
    gpg = ["gpg", "--batch", "--homedir", work / "gpg"]
    run(*gpg, "--detach-sign", "--output", directory / f"{name}.sig", directory / name)
    run(*gpg, "--armor", "--export", "--output", directory / "aws-efa-installer.key")
    # An adapter, as the kernel shows it.
    for part, value in {"vendor": "0x1d0f", "class": "0x020000", "device": "0xefa1"}.items():
        write(fakes / "pci/0000:00:1f.0" / part, f"{value}\n")
    return hashlib.sha256((directory / name).read_bytes()).hexdigest()


def main(repository: Path, fakes: Path, work: Path) -> None:
    repository.mkdir(parents=True)
    for version in VERSIONS:
        for package, needs in PACKAGES.items():
            build(work, repository, fakes, package, version, needs)
    for package, needs in ALONE.items():
        build(work, repository, fakes, package, "4.5.0", needs)
    # A T4, as the kernel shows it.
    for name, value in {"vendor": "0x10de", "class": "0x030200", "device": "0x1eb8"}.items():
        write(fakes / "pci/0000:00:1e.0" / name, f"{value}\n")
    write(fakes / "fingerprint", publish(repository, work / "gpg"))
    write(fakes / "efa-sha256", make_efa_installer(repository.parents[1] / "efa", fakes, work))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
