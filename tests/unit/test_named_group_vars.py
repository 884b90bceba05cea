"""An error in a file of variables names the file, what is wrong in it and what to do, and shows none of its lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.errors import AnsibleParserError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from named_group_vars import VarsModule

SLIP = "proxy_keys: topsecret\n b: [\n"
DOUBLE = "a: 1\nproxy_keys:\n  - name: topsecret\n    key: topsecret\n    key: other\n"


def encrypted(text: str) -> bytes:
    return bytes(VaultLib([("default", VaultSecret(b"right"))]).encrypt(text))


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> DataLoader:
    monkeypatch.setenv("ANSIBLE_DUPLICATE_YAML_DICT_KEY", "error")
    return DataLoader()


@pytest.mark.parametrize(
    ("content", "password", "said"),
    [
        (encrypted("a: 1"), None, "is encrypted, and no vault password was given: add --ask-vault-pass or"),
        (encrypted("a: 1"), b"wrong", "is encrypted with another vault password than the one that was given: give"),
        (encrypted(SLIP), b"right", ", line 2, column 3 is not valid YAML: mapping values are not allowed here."),
        (encrypted(SLIP), b"right", "mend it with ansible-vault edit "),
        (b"$ANSIBLE_VAULT;1.1;AES256\nxyz\n", b"right", "cannot be read: "),
        (SLIP.encode(), None, ", line 2, column 3 is not valid YAML: mapping values are not allowed here."),
        ("a: topsecret\n".encode("utf-16"), None, "is not a text in UTF-8: save it in that encoding"),
        (b"a: topsecret\0\n", None, "is not a text in UTF-8: save it in that encoding"),
        ("a: topsecret\u00e4\n".encode("latin-1"), None, "is not a text in UTF-8: save it in that encoding"),
        (
            DOUBLE.encode(),
            None,
            ", lines 4 and 5 have the duplicate mapping key 'key', of which one value would be lost: take one of them out",
        ),
        (
            encrypted(DOUBLE),
            b"right",
            ", lines 4 and 5 have the duplicate mapping key 'key', of which one value would be lost: take one of them out",
        ),
        (b"topsecret-31f9: 1\ntopsecret-31f9: 2\n", None, "lines 1 and 2 have the duplicate mapping key, of which"),
        (b"- topsecret\n", None, ": "),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_cause(
    loader: DataLoader, tmp_path: Path, content: bytes, password: bytes | None, said: str
) -> None:
    path = tmp_path / "all.yml"
    path.write_bytes(content)
    loader.set_vault_secrets([("default", VaultSecret(password))] if password else [])
    with pytest.raises(AnsibleParserError) as raised:
        VarsModule().load_found_files(loader, {}, [str(path)])
    message = str(raised.value)
    assert message.startswith(str(path))
    assert said in message
    assert "topsecret" not in message
    assert raised.value.__cause__ is None


def test_a_good_file_is_read(loader: DataLoader, tmp_path: Path) -> None:
    (tmp_path / "all.yml").write_bytes(encrypted("a: {b: 1}\n"))
    loader.set_vault_secrets([("default", VaultSecret(b"right"))])
    assert VarsModule().load_found_files(loader, {"c": 2}, [str(tmp_path / "all.yml")]) == {"a": {"b": 1}, "c": 2}
