"""Ansible's loader of plugins, for tests that evaluate a role's expressions. It can be begun only once."""

from ansible.plugins.loader import init_plugin_loader

init_plugin_loader()
