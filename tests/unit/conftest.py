"""Ansible's plugins, which some tests evaluate templates with."""

from ansible.plugins.loader import init_plugin_loader

# Once per process: Ansible warns of a second time.
init_plugin_loader()
