"""`python -m pipelines.cli`, where `reloop` is not on the path."""

from pipelines.cli.entry import main

if __name__ == "__main__":
    main()
