from inference_proxy.cli import main

raise SystemExit(main())
