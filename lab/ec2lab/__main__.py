"""Entry point of `python -m ec2lab`."""

from ec2lab.cli import main

raise SystemExit(main())
