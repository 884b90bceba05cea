"""The wanted fleet of an environment beside what AWS has of it: what is wrong, what has to be made or removed, and what it costs.

From the top down: `scaling` changes the number of one kind of hosts, `plans` compares and explains, `problems` says what is wrong, `wanted`
turns an operator's variables into resources, `prices` has the costs. Only `present` asks AWS, and nothing here changes anything there.
"""
