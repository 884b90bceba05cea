"""All checks, in the order in which their problems are reported."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from .inventory import Inventory
from .messages import printable
from .subjects import (
    addresses,
    alike,
    clusters,
    domain,
    elsewhere,
    endpoints,
    engines,
    files,
    fleet,
    gpus,
    groups,
    keys,
    limits,
    models,
    names,
    pools,
    ports,
    priorities,
    readable,
    tiers,
    unserved,
    values,
)

Check = Callable[[Inventory], Iterator[str]]

# Checks of the form of groups and variables.
FORM: list[Check] = [
    groups.check_groups,
    groups.check_strays,
    fleet.check_instances,
    fleet.check_environment,
    names.check_variable_names,
    names.check_places,
    values.check_types,
    values.check_options,
]
# Checks of what the variables mean. They get only values of the right form.
CHECKS: list[Check] = [
    engines.check_engines,
    engines.check_engine_args,
    engines.check_streams,
    engines.check_models_are_visible,
    engines.check_beside,
    engines.check_engine_ids,
    clusters.check_clusters,
    ports.check_ports,
    pools.check_pools,
    pools.check_engines_pools,
    keys.check_keys,
    keys.check_priorities_of_keys,
    keys.check_models_of_keys,
    limits.check_limits,
    limits.check_models_of_limits,
    models.check_models,
    models.check_models_are_served,
    priorities.check_priorities,
    priorities.check_engines_know_priorities,
    endpoints.check_endpoints,
    addresses.check_addresses,
    alike.check_alike,
    tiers.check_tiers,
    gpus.check_gpus,
    files.check_files,
    elsewhere.check_elsewhere,
    files.check_vaults,
    domain.check_domain,
    # The last one, because the others find what cannot be read.
    readable.check_readable,
]
# What may be wrong, but need not be: reported as warnings.
NOTICES: list[Check] = [fleet.notice_names, unserved.notice_unserved_models]

# The checks that a role makes for its own host. It needs no variables of other tiers.
OF_ROLES: dict[str, list[Check]] = {
    "vllm": [
        engines.check_engines,
        engines.check_engine_args,
        engines.check_streams,
        engines.check_models_are_visible,
        engines.check_beside,
        ports.check_ports,
        gpus.check_gpus,
        readable.check_readable,
    ],
    "proxy": [
        ports.check_ports,
        pools.check_pools,
        keys.check_keys,
        keys.check_priorities_of_keys,
        limits.check_limits,
        models.check_models,
        priorities.check_priorities,
        endpoints.check_endpoints,
        readable.check_readable,
    ],
}


def all_problems(inventory: Inventory) -> list[str]:
    """The problems that all checks find, each once."""
    return _problems(inventory, FORM, CHECKS)


def role_problems(inventory: Inventory, role: str) -> list[str]:
    """The problems that a role's own checks find."""
    return _problems(inventory, [values.check_types, values.check_options], OF_ROLES[role])


def _problems(inventory: Inventory, form: list[Check], meaning: list[Check]) -> list[str]:
    found = [problem for check in form for problem in _problems_of(check, inventory)]
    inventory.leave_out_misfits()
    found += _found_by(meaning, inventory)
    return list(dict.fromkeys(map(printable, found)))


def all_notices(inventory: Inventory) -> list[str]:
    """What may be wrong with the inventory: warnings that do not stop a run."""
    inventory.leave_out_misfits()
    return list(dict.fromkeys(map(printable, _found_by(NOTICES, inventory))))


def _found_by(checks: list[Check], inventory: Inventory) -> list[str]:
    """The problems that some checks find. A check that needs a value which only the role will know is left to the
    role's own preflight."""
    found: list[str] = []
    for check in checks:
        inventory.known_later.clear()
        problems = _problems_of(check, inventory)
        found += [] if inventory.known_later else problems
    return found


def _problems_of(check: Check, inventory: Inventory) -> list[str]:
    """The problems that one check finds. A check that fails itself is one problem, and the others still run."""
    found: list[str] = []
    try:
        found.extend(check(inventory))
    except Exception as error:
        # The error's own words may hold a key.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        found.append(f"{check.__name__} could not be made: {type(error).__name__} in {where}. Please report it.")
    return found
