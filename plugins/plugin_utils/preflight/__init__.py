"""What is wrong with an inventory, found from its variables alone.

`checks` lists all checks. Each subject of `subjects` is a module that reads an `inventory.Inventory` and uses the modules
of this package, but no other subject. The action plugin loads the package by its path, so modules import each other
relatively.
"""
