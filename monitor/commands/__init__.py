"""The commands of `tidemark`: one module each, with `arguments(parser)` and `run(args)`."""
